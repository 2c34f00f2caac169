"""Keys of services stand in no text that is shown or kept."""

import base64
from urllib.parse import quote

import pytest

from nlf.errors import UserError
from nlf.secrets import VARIABLES, is_secret, key_of, known_secrets, masked

KEY = "sk-proj-SECRET/1234+abcd"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def encoded(text):
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "quoted",
    [
        KEY,
        f"{KEY[:8]}*****{KEY[-4:]}",
        f"{KEY[:8]}...{KEY[-6:]}",
        f"xxxxxxxx{KEY[-4:]}",
        KEY[::-1],
        KEY.upper(),
        " ".join(KEY),
        f"{KEY[:10]} {KEY[10:]}",
        f"{KEY[:12]}\n{KEY[12:]}",
        encoded(KEY),
        encoded(f"Bearer {KEY}"),
        encoded(f":{KEY}"),
        base64.urlsafe_b64encode(KEY.encode()).decode(),
        KEY.encode().hex(),
        quote(KEY, safe=""),
        "".join(f"%{byte:02x}" for byte in KEY.encode()),
        f"İ{KEY}tail",
    ],
)
def test_a_key_quoted_in_parts_or_in_another_form_is_masked(quoted):
    found = masked(f"Incorrect key: {quoted}.", [KEY], words=True)
    assert "[key]" in found and found.startswith("Incorrect key: ") and found.endswith(".")
    plain = found.replace("[key]", "").lower()
    for part in ("secret", "1234", "abcd", "terces", "dcba", encoded(KEY)[4:12].lower(), KEY.encode().hex()[8:16]):
        assert part not in plain


def test_the_words_of_an_answer_that_are_part_of_a_key_by_chance_stay():
    text = "The project of 1234 is local"
    assert masked(text, [KEY, "my-local-key"]) == text
    assert masked(text, [KEY]) == text and masked("no key here", ["x", "key"], words=True) == "no key here"


def test_every_text_of_an_answer_is_masked_names_too(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert masked({KEY: [f"it is {KEY}", 1, None, {"a": KEY}]}) == {"[key]": ["it is [key]", 1, None, {"a": "[key]"}]}


def test_keys_of_files_are_masked_and_unusable_ones_are_left_to_their_readers(monkeypatch, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("PERSPECTIVE_API_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("HF_TOKEN", "two words")
    assert known_secrets() == {KEY}
    with pytest.raises(UserError, match="HF_TOKEN: expected a key"):
        key_of("HF_TOKEN")


def test_settings_that_hold_a_secret_by_name():
    assert all(map(is_secret, ["hub_token", "--hub-token", "api_key", "OPENAI_API_KEY", "db_password"]))
    assert not any(map(is_secret, ["eos_token_id", "tag_tokens", "max_new_tokens", "keyboard", "push_to_hub"]))
