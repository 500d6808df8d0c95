"""The two pictures of the README from a run's report: python tests/screenshot.py RUN assets

report.png is the page in a headless chromium, 1280 pixels wide, at a trajectory with one correction;
accuracy.png is the run's plots/accuracy-by-stage.png. Both with 256 colours.
"""
import os
import shutil
import sys

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

SHOW = """
for (const [name, value] of [["source", "mps"], ["outcome", "solved"], ["corrections", "1"]]) {
  const filter = document.getElementById("filter-" + name);
  filter.value = value;
  filter.onchange();
}
document.querySelector("#browser").scrollIntoView(); window.scrollBy(0, -8);"""


def main(run_dir: str, out: str) -> None:
    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", "force-color-profile=srgb"):
        options.add_argument("--" + flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    size = dict(width=1280, height=900, deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get("file://" + os.path.abspath(os.path.join(run_dir, "report.html")))
    ready = "return document.body.dataset.ready === 'yes'"
    WebDriverWait(browser, 20).until(lambda browser: browser.execute_script(ready))
    browser.execute_script(SHOW)
    browser.save_screenshot(os.path.join(out, "report.png"))
    browser.quit()
    shutil.copy(os.path.join(run_dir, "plots", "accuracy-by-stage.png"), os.path.join(out, "accuracy.png"))
    for name in ("report.png", "accuracy.png"):
        path = os.path.join(out, name)
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
        print(f"{path}: {os.path.getsize(path) / 1000:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
