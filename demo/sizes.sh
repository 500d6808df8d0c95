# Sizes for run.sh, lengths.sh and study.sh, which source this file after stage.sh. It reads $quick (a smoke run), $study
# (the study's own sizes), $student and $size.
bc=600 mps=1300 dev=200 eval=400 beyond=120                                    # tasks
pretrain_steps=800 pretrain=(--batch 32 --lr 3e-3 --weight-decay 0)
clone_steps=400    clone=(--batch 16 --lr 3e-3 --weight-decay 0)
correct_steps=250  correct=(--batch 16 --lr 1e-3 --weight-decay 0)
reinforce_steps=48 reinforce=(--prompts 24 --group 8 --mini-batch 12 --lr 2e-4 --weight-decay 0)
limits=(--max-steps 8 --max-tokens 240)
far=(--max-steps 10 --max-tokens 360)                                          # for tasks of up to 8 operations
if [ -n "${study:-}" ]; then                   # a student that leaves RL room, few starts that are visited often
    mps=800 dev=400 eval=800 searches=7 search_every=4                         # one task in four is a search
    pretrain_steps=1200
    mentored=(--corrections 4 --sft-share 0.9 --rl-easy 0.5)
    tokens=320000 most_steps=200 look_every=12                                 # of RL
    more_steps=1000                                                            # of SFT: the seconds of an arm of RL
    prefer_steps=200 prefer=(--batch 16 --lr 1e-5 --weight-decay 0)
    limits=(--max-steps 9 --max-tokens 300)
    far=(--max-steps 11 --max-tokens 360)
fi
split=()
if [ "${student:-tiny}" != tiny ]; then        # 135M pretrained parameters: 2 cores train on 250 tokens a second
    dtype=$(fast_dtype $size)
    bc=240 mps=160 eval=200 split=(--sft-share 0.65)
    clone_steps=60     clone=(--batch 8 --row-tokens 2048 --lr 5e-4 --weight-decay 0 --dtype $dtype)
    correct_steps=36   correct=(--batch 8 --row-tokens 2048 --lr 3e-4 --weight-decay 0 --dtype $dtype)
    reinforce_steps=8  reinforce=(--prompts 8 --group 8 --mini-batch 4 --row-tokens 2048 --lr 2e-5
                                  --weight-decay 0 --dtype $dtype)
    limits=(--max-steps 8 --max-tokens 440)                                    # its tokens are shorter
    far=(--max-steps 10 --max-tokens 720)
    if [ "$size" = gpu ]; then
        bc=600 mps=384
        clone_steps=120    clone=(--batch 16 --row-tokens 8192 --lr 5e-4 --weight-decay 0 --dtype $dtype)
        correct_steps=120  correct=(--batch 16 --row-tokens 8192 --lr 3e-4 --weight-decay 0 --dtype $dtype)
        reinforce_steps=6  reinforce=(--prompts 32 --group 8 --rollout-batch 256 --mini-batch 16
                                      --row-tokens 8192 --lr 2e-5 --weight-decay 0 --dtype $dtype)
    fi
fi
if [ -n "$quick" ]; then
    bc=40 mps=24 dev=16 eval=12 beyond=8 mentored=(--corrections 5 --rl-easy 0.5)
    pretrain_steps=30 clone_steps=20 correct_steps=10 more_steps=10 reinforce_steps=2
    reinforce=(--prompts 4 --group 4 --mini-batch 4 --lr 2e-4 --max-failed 1)
    tokens=2000 most_steps=3 look_every=1 prefer_steps=2
    if [ "${student:-tiny}" != tiny ]; then
        bc=16 mps=8 eval=4 split=() limits=(--max-steps 8 --max-tokens 40)
        clone_steps=2 correct_steps=2 reinforce_steps=1
        reinforce=(--prompts 2 --group 4 --mini-batch 2 --row-tokens 1024 --lr 2e-5 --max-failed 1 --dtype $dtype)
    fi
fi
