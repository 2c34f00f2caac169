"""The page of `nlf serve` in a real browser: completions stream in, dials turn, links restore, hostile texts stay texts."""

import contextlib
import io
import json
import shutil
import subprocess

import browsers
import pytest
from browsers import By, Keys, requests, wait
from openai_server import make_run, running
from running import ask
from test_page import Short

from nlf.evaluation.run_defaults import Scorers
from nlf.rewards import Reward

WIDE, PHONE = 1200, 390
TAGS = 5
HOSTILE = '<img src=x onerror="window.ran=1"><script>window.ran=2</script> & \' " `${window.ran=3}`'
FINISHED = "document.getElementById('status').textContent.startsWith('Finished')"


@pytest.fixture(scope="module")
def browser():
    with browsers.started() as found:
        yield found


@pytest.fixture(scope="module")
def url(run):
    with running(run) as (found, service):
        service.rater._scorers = Scorers([Reward(Short())])
        yield found


def show(browser, url, width=WIDE, theme="light", hash=""):
    browsers.show(browser, "about:blank", width, theme)  # or a link that differs in its hash would not load the page
    browsers.show(browser, f"{url}/{hash}", width, theme)
    wait(browser, "document.querySelectorAll('#columns article').length == 3")
    wait(browser, "!document.getElementById('distribution').hidden")


def write(browser):
    browser.find_element(By.ID, "write").click()
    wait(browser, FINISHED)


def texts(browser) -> dict[str, str]:
    script = "return [...document.querySelectorAll('#columns article')].map(e => [e.ariaLabel, e.querySelector('.text').textContent])"
    return dict(browser.execute_script(script))


def text_of(browser, id: str) -> str:
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", id)


def served(url, model, **fields) -> str:
    prompt = "The umbrella broke in the first wind and the seller told me that I"
    body = {"model": model, "prompt": prompt, "seed": 0, **fields}
    return ask(url, "/v1/completions", body)[1]["choices"][0]["text"]


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_models_write_side_by_side_and_every_width_and_theme_fits(browser, url, width, theme):
    show(browser, url, width, theme)
    write(browser)
    assert texts(browser) == {name: served(url, name) for name in ("base", "tagged", "plain")}
    assert list(texts(browser)) == ["base", "tagged", "plain"]
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    assert {each for each in requests(browser) if not each.startswith(("data:", "about:"))} <= {
        f"{url}{path}" for path in ("/", "/page.css", "/page.js", "/nlf/settings", "/nlf/score", "/v1/completions")
    }


def test_each_token_has_the_colour_of_the_text_up_to_it(browser, url):
    show(browser, url)
    write(browser)
    script = (
        "return [...document.querySelectorAll('.dialed .text span')].map(e => [e.textContent, e.className, e.title])"
    )
    so_far = ""
    for token, colour, title in browser.execute_script(script):
        so_far += token
        score = 1 - len(so_far) / 20
        step = round((2 * score - 1) * 4)
        assert title == f"score so far: {score:.2f}"
        assert colour == (f"up{step}" if step > 0 else f"down{-step}" if step else "")
    told = browser.find_element(By.CSS_SELECTOR, ".dialed h3 span").text
    assert told == f"score {1 - len(texts(browser)['tagged']) / 20:.2f}"


def test_the_keyboard_turns_the_dial_and_the_link_restores_it(browser, url):
    show(browser, url)
    write(browser)
    dial = browser.find_element(By.ID, "tag0")
    dial.send_keys(Keys.END)
    assert dial.get_attribute("aria-valuetext") == "Maximum Toxicity"
    browser.find_element(By.ID, "guidance").send_keys(Keys.ARROW_RIGHT * 4)
    changed = served(url, "tagged", tag="Maximum Toxicity", guidance_scale=1)
    wait(browser, f"document.querySelector('.dialed .text').textContent == {json.dumps(changed)}")
    show(browser, url, hash=browser.current_url.removeprefix(f"{url}/"))
    wait(browser, FINISHED)
    assert browser.find_element(By.ID, "tag0").get_attribute("aria-valuetext") == "Maximum Toxicity"
    assert texts(browser)["tagged"] == changed and texts(browser)["base"] == served(url, "base")


def test_each_attribute_has_a_dial_of_its_own(browser, tmp_path):
    own = [
        {"name": "toxicity", "reward": "local", "tags": ["kind", "rude"]},
        {"name": "mood", "reward": "sentiment", "tags": ["glad", "calm", "sad"]},
    ]
    settings = {"reward_funcs": ["local", "sentiment"], "attributes": own, "attribute_template": " & "}
    run = make_run(tmp_path, settings, tags=("kind & glad", "kind & calm", "rude & sad"))
    with running(run, models=["tagged"]) as (url, service):
        service.rater._scorers = Scorers([Reward(Short())])
        browsers.show(browser, f"{url}/#prompt=the&tag=rude&tag=calm&guidance=1", WIDE)
        wait(browser, FINISHED)
        names = "return [...document.querySelectorAll('.dial')].map(each => each.textContent)"
        assert browser.execute_script(names) == [
            "toxicityrudekindrude",
            "moodcalmgladsad",
            "Guidance away from rude, sad1offstrong",
        ]
        asked = served(url, "tagged", prompt="the", tag=["rude", "calm"], guidance_scale=1)
        assert texts(browser) == {"tagged": asked} and '"tag":["rude","calm"]' in text_of(browser, "curl")
        browser.find_element(By.ID, "draw").click()
        wait(browser, "document.getElementById('status').textContent.startsWith('The plot')")
        rows = "return [...document.querySelectorAll('tbody th')].map(each => each.textContent)"
        assert browser.execute_script(rows) == ["kind", "rude", "glad", "calm", "sad"]


def test_the_plot_has_a_row_for_the_base_and_for_each_tag_and_fits_a_phone(browser, url):
    show(browser, url, PHONE)
    browser.find_element(By.ID, "draw").click()
    wait(browser, "document.getElementById('status').textContent.startsWith('The plot')")
    assert text_of(browser, "error") == ""
    rows = browser.execute_script(
        "return [...document.querySelectorAll('tbody tr')].map(e => [...e.children].map(c => c.textContent))"
    )
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PHONE
    assert len(rows) == TAGS + 1 and rows[0][0] == "base" and all(row[1] == "25" for row in rows)
    assert browser.execute_script("return document.querySelectorAll('svg circle').length") == 25 * (TAGS + 1)


def test_the_requests_of_a_program_give_the_same_text(browser, url):
    show(browser, url, hash="#prompt=it's+a+%22test%22&tag=Maximum+Toxicity&guidance=0.5&seed=3&length=5")
    wait(browser, FINISHED)
    shown, said = texts(browser)["tagged"], io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(text_of(browser, "python"), {})
    assert said.getvalue() == f"{shown}\n"
    if shutil.which("curl"):
        done = subprocess.run(["sh", "-c", f"{text_of(browser, 'curl')} --silent"], capture_output=True, check=True)
        assert json.loads(done.stdout)["choices"][0]["text"] == shown


def test_hostile_texts_stay_texts(browser, url):
    show(browser, url, hash="#tag=" + HOSTILE.replace("#", ""))
    event = json.dumps({"choices": [{"index": 0, "text": HOSTILE, "logprobs": None}]})
    browser.execute_script(
        "const real = window.fetch; window.fetch = (path, rest) => path.startsWith('/v1/completions')"
        "? Promise.resolve(new Response(arguments[0])) : real(path, rest)".replace("arguments[0]", "window.stream")
        + "; window.stream = arguments[0];",
        f"data: {event}\n\ndata: [DONE]\n\n",
    )
    write(browser)
    assert set(texts(browser).values()) == {HOSTILE}
    assert browser.execute_script("return window.ran ?? 0") == 0
    assert browser.execute_script("return document.querySelectorAll('main img, main script').length") == 0


def test_an_error_of_the_server_is_told(browser, url):
    show(browser, url, hash="#prompt=" + "word+" * 500)
    wait(browser, "document.getElementById('error').textContent")
    assert "tokens" in text_of(browser, "error")


def test_writing_again_gives_up_the_first_and_a_run_without_scorers_shows_no_scores(browser, run):
    with running(run) as (url, service):
        service.rater._scorers = None
        browsers.show(browser, url, WIDE)
        wait(browser, "document.querySelectorAll('#columns article').length == 3")
        browser.execute_script("for (const _ of [1, 2]) document.getElementById('write').click()")
        wait(browser, FINISHED)
        assert text_of(browser, "status") == "Finished. base: done; tagged: done; plain: done."
        assert texts(browser) == {name: served(url, name) for name in ("base", "tagged", "plain")}
        assert not browser.find_element(By.ID, "distribution").is_displayed()


def test_a_server_with_a_key_asks_for_it(browser, run):
    with running(run, key="sk-secret") as (url, _):
        browsers.show(browser, url, WIDE)
        wait(browser, "!document.getElementById('key-form').hidden")
        assert not browser.find_element(By.ID, "prompt").is_displayed()
        browser.find_element(By.ID, "key").send_keys("sk-secret", Keys.ENTER)
        wait(browser, "document.querySelectorAll('#columns article').length == 3")
        write(browser)
        assert all(texts(browser).values()) and "sk-secret" not in text_of(browser, "curl") + browser.current_url
