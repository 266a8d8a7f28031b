"""An operator in a real browser. Speaks with the test over standard input and output:

says `waiting` when signed in and looking at a device that is away and has never had the model; then
reads the number of the audit entry that it must see, and finds everything on the page as it changes,
never reloading.
"""

import os
import pathlib
import sys
import tempfile

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE_S = 60
url = os.environ["CONSOLE_URL"].rstrip("/")
device, model = os.environ["DEVICE_ID"], os.environ["MODEL"]
screenshots = pathlib.Path(os.environ["SCREENSHOTS"])

options = webdriver.ChromeOptions()
options.binary_location = "/usr/bin/chromium"
for flag in (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1280,1000",
    f"--user-data-dir={tempfile.mkdtemp(prefix='fulmar-browser-')}",
):
    options.add_argument(flag)
options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))


def until(what, holds):
    try:
        WebDriverWait(browser, PATIENCE_S, 0.1).until(lambda _: holds())
    except Exception:
        browser.save_screenshot(str(screenshots / "console-failed.png"))
        sys.exit(f"{what}: not within {PATIENCE_S} s; the page says:\n{page_text()}")


def page_text():
    # The live part may be replaced while it is read.
    return browser.execute_script("return document.body.innerText")


def device_state():
    return browser.execute_script(
        "return document.querySelector('#live > p > .state')?.innerText.trim() ?? null"
    )


def model_state():
    """What the device says of the model, below `What it holds`; None while it says nothing."""
    return browser.execute_script(
        "const holds = Array.from(document.querySelectorAll('h2'))"
        ".find(h => h.innerText.trim().toLowerCase() === 'what it holds');"
        "const row = Array.from(holds?.parentElement.querySelectorAll('tbody tr') ?? [])"
        ".find(r => r.innerText.includes(arguments[0]));"
        "return row?.querySelector('.state').innerText.trim() ?? null", model
    )


def entry_is_shown(entry, *more):
    """Whether a row is about the run of a model that has this number, and says more words."""
    return browser.execute_script(
        "return Array.from(document.querySelectorAll('tr'), r => r.innerText.split(/\\s+/))"
        ".some(words => arguments[0].every(word => words.includes(word)))",
        ["model.run", entry, *more],
    )


try:
    # Nothing is shown to somebody who is not signed in.
    browser.get(f"{url}/fleet")
    until("the sign-in page", lambda: "/sign-in" in browser.current_url)
    assert device not in browser.page_source

    def sign_in(password):
        name = browser.find_element(By.NAME, "name")
        name.clear()
        name.send_keys(os.environ["CONSOLE_USER"])
        browser.find_element(By.NAME, "password").send_keys(password)
        browser.find_element(By.CSS_SELECTOR, "form button").click()

    sign_in("a wrong password")
    until("the refusal", lambda: "/sign-in" in browser.current_url and browser.find_elements(By.NAME, "password"))
    assert device not in browser.page_source
    sign_in(os.environ["CONSOLE_PASSWORD"])
    until("the fleet", lambda: device in browser.page_source)

    browser.get(f"{url}/devices/{device}")
    # It was online a moment ago, and a page that says so already could not show a change.
    until("the device is away", lambda: device_state() == "offline")
    assert model_state() is None, model_state()
    # Put on the page once: still there at the end if nothing was reloaded.
    browser.execute_script("document.body.dataset.never = 'reloaded'")
    print("waiting", flush=True)
    entry = sys.stdin.readline().strip()

    until("the device turns online", lambda: device_state() == "online")
    until("the model turns active", lambda: model_state() == "active")
    until("the entry of the question", lambda: entry_is_shown(entry))
    assert browser.execute_script("return document.body.dataset.never") == "reloaded"
    browser.save_screenshot(str(screenshots / "console-device.png"))

    for path in ("fleet", "models", "deployments", "audit"):
        browser.get(f"{url}/{path}")
        until(f"the page {path}", lambda: browser.find_elements(By.TAG_NAME, "h1"))
        if path == "audit":
            until("the entry of the question on audit", lambda: entry_is_shown(entry, "quickstart"))
        else:
            until(f"the model or the device on {path}", lambda: model in page_text())
        browser.save_screenshot(str(screenshots / f"console-{path}.png"))

    # The strict content policy holds: the browser had nothing to object to.
    objections = [e["message"] for e in browser.get_log("browser")
                  if e["level"] == "SEVERE" and "favicon" not in e["message"]
                  and "401" not in e["message"] and "403" not in e["message"]]
    assert not objections, objections
finally:
    browser.quit()
