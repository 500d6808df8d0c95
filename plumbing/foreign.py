"""What a file may be in place of JSON, and what to do about it."""
import codecs
import contextlib
from collections.abc import Iterator
from pathlib import Path

from plumbing.cli import InputError

PARQUET = ("a Parquet table: write it as JSON lines first, in pandas "
           "read_parquet(FILE).to_json(OUT, orient='records', lines=True)")
ARROW = "an Arrow table: write it as JSON lines first, in datasets Dataset.from_file(FILE).to_json(OUT)"
CSV = ("a table: write it as JSON lines first, in pandas "
       "read_csv(FILE).to_json(OUT, orient='records', lines=True)")
TSV = CSV.replace("read_csv(FILE)", "read_csv(FILE, sep='\\t')")
ENCRYPTED = ('encrypted, as its field "canary" says (xBench, BrowseComp): decrypt question and answer with '
             "xor_decrypt of github.com/xbench-ai/xbench-evals (BrowseComp: decrypt of openai/simple-evals) "
             "and write them as JSON lines")
COMPRESSED = "compressed: unpack it first, with gunzip, zstd -d, bunzip2 or unxz"
UTF16 = "UTF-16 text: write it as UTF-8 first, with iconv"
UTF32 = "UTF-32 text: write it as UTF-8 first, with iconv"

# by its first bytes
FOREIGN = {b"PAR1": PARQUET,
           b"ARROW1": ARROW,
           b"\xff\xff\xff\xff": ARROW,
           b"\x1f\x8b": COMPRESSED,
           b"\x28\xb5\x2f\xfd": COMPRESSED,
           b"BZh": COMPRESSED,
           b"\xfd7zXZ": COMPRESSED,
           b"PK": "a zip archive or an Excel table: unpack it, or write it as JSON lines first",
           b"version https://git-lfs": "only a pointer of Git LFS: get the file itself with git lfs pull",
           b"<?xml": "XML: write it as JSON lines first",
           b"<": "a web page: download the raw file in its place",
           codecs.BOM_UTF32_LE: UTF32,                     # before UTF-16, whose mark it begins with
           codecs.BOM_UTF32_BE: UTF32,
           codecs.BOM_UTF16_LE: UTF16,
           codecs.BOM_UTF16_BE: UTF16}


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """InputError, naming the file, for what goes wrong while it is read as UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}): write it as JSON lines in UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def refuse_foreign(path: str | Path, start: bytes) -> None:
    """InputError if a file, by its first bytes or its name, is no JSON."""
    start = start.removeprefix(codecs.BOM_UTF8).lstrip()
    for beginning, what in FOREIGN.items():
        if start.startswith(beginning):
            raise InputError(f"{path} is {what}")
    ending = Path(path).suffix.lower()
    if ending in (".csv", ".tsv"):
        what = CSV if ending == ".csv" else TSV
        if b"canary" in start.split(b"\n")[0].lower():
            what = ENCRYPTED
        raise InputError(f"{path} is {what}")
