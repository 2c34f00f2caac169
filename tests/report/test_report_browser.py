"""The report in a real browser: nothing runs, nothing is loaded, it fits a phone, and blurred texts can be read."""

import browsers
import pytest
import reports
from browsers import By, Keys, requests

from nlf.report import write_report

WIDE, PHONE = 1280, 390


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium without a network."""
    with browsers.started() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """An ordinary page and a hostile one."""
    folder = tmp_path_factory.mktemp("pages")
    ordinary = reports.write_run(folder / "demo", reports.systems(guidance=(1.0,)), prompts=8, copies=6)
    runs = {"ordinary": ordinary, "hostile": reports.write_hostile(folder)}
    return {name: write_report([run], folder / f"{name}.html", num_samples=8) for name, run in runs.items()}


def show(browser, path, width=WIDE, theme="light"):
    """Load a page with a width and a theme, and clear the logs."""
    browsers.show(browser, path.as_uri(), width, theme)


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["ordinary", "hostile"])
def test_nothing_runs_nothing_is_loaded_and_nothing_overflows(browser, pages, name, theme, width):
    show(browser, pages[name], width, theme)
    assert browser.execute_script("return document.readyState") == "complete"  # an alert would be an error here
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    assert requests(browser) == {pages[name].as_uri()}


@pytest.mark.parametrize("name", ["ordinary", "hostile"])
def test_all_elements_are_ours_where_they_belong(browser, pages, name):
    show(browser, pages[name])
    assert browser.execute_script("return [...document.querySelectorAll('svg *')].map(e => e.tagName)")
    strange = "return [...document.querySelectorAll('main *, header *')].filter(e => [...e.attributes].some(a => a.name.startsWith('on')))"
    assert browser.execute_script(strange) == []
    assert len(browser.find_elements(By.CSS_SELECTOR, "main > section")) == 8
    assert len(browser.find_elements(By.CSS_SELECTOR, "body > *")) == 3


def test_the_policy_lets_no_script_run_that_got_in(browser, pages):
    show(browser, pages["ordinary"])
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s);"
        "const d = document.createElement('div'); d.innerHTML = '<img src=x onerror=\"window.ran = 2\">'; document.body.append(d);"
    )
    assert browser.execute_script("return window.ran || 0") == 0
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_coloured_completions_fit_and_a_switch_of_their_own_shows_them(browser, tmp_path, width):
    """Also where the run is not evaluated, so that the page has no other samples."""
    (tmp_path / "config.yaml").write_text("model_name_or_path: embedded\n")
    reports.tokenizer().save(str(tmp_path / "tokenizer.json"))
    rows = [
        reports.rollout(text.encode(errors="ignore").decode(), 0.5, None) for text in ["one two", *reports.HOSTILE]
    ]
    for row in rows:
        row["prompt"] = row["completion"]
    steps = [-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0]
    for i in range(0, len(rows), 3):
        part = rows[i : i + 3]
        credit = [[steps[t % 9] for t in range(len(row["completion_ids"]))] for row in part]
        reports.write_credit(tmp_path, i, part, credit)
        page = write_report([tmp_path], tmp_path / f"{i}.html")
        show(browser, page, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.get_log("browser") == [] and requests(browser) == {page.as_uri()}
    assert blurred(browser) and all(blurred(browser))
    browser.find_element(By.ID, "show-credit").click()
    assert not any(blurred(browser))
    script = "return [...document.querySelectorAll('.shades span')].map(e => getComputedStyle(e).backgroundColor)"
    assert len(set(browser.execute_script(script))) == 9  # a shade for each


def blurred(browser) -> list[bool]:
    """For each text that is blurred at first, whether it is blurred now."""
    script = "return [...document.querySelectorAll('.veil bdi')].map(e => getComputedStyle(e).filter != 'none')"
    return browser.execute_script(script)


def test_a_click_shows_one_text_and_hides_it_again(browser, pages):
    show(browser, pages["ordinary"])
    count = len(blurred(browser))
    assert count > 3 and all(blurred(browser))
    first = browser.find_elements(By.CSS_SELECTOR, ".veil")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", first)
    first.click()
    assert blurred(browser) == [False] + [True] * (count - 1)
    first.click()
    assert all(blurred(browser))


def test_the_keyboard_reaches_and_shows_every_text(browser, pages):
    show(browser, pages["ordinary"], PHONE)
    switch = browser.find_element(By.ID, "show-all")
    browser.execute_script("arguments[0].focus()", switch)
    focused = browser.switch_to.active_element
    for _ in range(20):
        focused.send_keys(Keys.TAB)
        focused = browser.switch_to.active_element
        if focused.get_attribute("type") == "checkbox":
            break
    assert focused.get_attribute("aria-label").startswith("Show the")
    focused.send_keys(Keys.SPACE)
    assert blurred(browser).count(False) == 1
    switch.send_keys(Keys.SPACE)
    assert not any(blurred(browser))
    switch.send_keys(Keys.SPACE)
    assert blurred(browser).count(False) == 1


def test_plots_follow_the_theme(browser, pages):
    colours = []
    for theme in ("light", "dark"):
        show(browser, pages["ordinary"], theme=theme)
        script = "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
        colours.append(browser.execute_script(script))
    assert colours[0][0] != colours[1][0] and colours[0][1] != colours[1][1]


def test_the_navigation_stays_in_sight(browser, pages):
    show(browser, pages["ordinary"], PHONE)
    browser.execute_script("document.querySelector('#samples').scrollIntoView()")
    assert browser.execute_script("return document.querySelector('nav').getBoundingClientRect().top") == 0
