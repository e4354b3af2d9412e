"""The chat page and the dashboard, used as a person does, in headless Chromium."""

import concurrent.futures
import json
import time

import httpx
import pytest
from browser import Browser
from servers import Server, fake_model

READY = "document.querySelector('#status.ready') && document.querySelector('#model-name').textContent !== '…'"
DONE = "document.querySelector('#stop').hidden && document.querySelectorAll('.message').length === "
HOSTILE = """<img src=x onerror="window.hurt = 1"><script>window.hurt = 1</script>
[click](javascript:window.hurt=1) [ok](https://example.org/a) **bold** `a<b`

```html
<b onclick="x">&amp;</b>
```
| a | b |
|---|---|
| 1 | <i>2</i> |

1. one
   - inner
2. two
"""


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("pages") / "log", None) as server:
        yield server


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """Its answers go on until the model length: time to press Stop."""
    folder = tmp_path_factory.mktemp("endless")
    with Server(folder / "log", fake_model(folder / "model", 268), fake=True, api_key=["sesame"]) as server:
        yield server


@pytest.fixture
def page():
    with Browser() as browser:
        yield browser
        assert browser.complaints == []


def last_answer(page) -> str:
    return page.run("[...document.querySelectorAll('.assistant .body')].at(-1).innerText")


def ask(page, text: str, num_messages: int) -> str:
    page.type("#prompt", text)
    page.press("Enter")
    page.wait(DONE + str(num_messages))
    return last_answer(page)


def test_a_chat(bundled, page):
    page.go(bundled.url + "/", READY)
    assert page.run("document.querySelector('#model-name').textContent") == "builtin-tiny"
    assert "Paris" in ask(page, "What is the capital of France?", 2)
    assert "Rome" in ask(page, "What is the capital of Italy?", 4)
    page.click(".user .edit")
    page.type(".editor textarea", "What is the capital of Japan?")
    page.press("Enter")
    page.wait(DONE + "2")
    assert "Tokyo" in last_answer(page)
    page.click(".assistant .retry")
    page.wait(DONE + "2")
    assert "Tokyo" in last_answer(page)
    page.click("#new")
    assert page.run("document.querySelectorAll('.message').length") == 0
    assert all(url.startswith(bundled.url) for url in page.urls)


def test_settings_reach_the_server(bundled, page):
    page.go(bundled.url + "/", READY)
    page.run(
        "window.bodies = []; window.plain = fetch; window.fetch = (u, o) => { if (o?.body) bodies.push(o.body); return plain(u, o) }"
    )
    page.click("#toggle-settings")
    page.type("#system", "Be brief.")
    for name, value in (("temperature", "0"), ("top_k", "3"), ("max_tokens", "5"), ("seed", "7")):
        page.type(f"#field-{name}", value)
    ask(page, "Tell me a story.", 2)
    assert "5 tokens" in page.run("document.querySelector('.assistant .actions').innerText")
    body = json.loads(page.run("bodies[0]"))
    assert {key: body[key] for key in ("temperature", "top_k", "max_tokens", "seed")} == {
        "temperature": 0, "top_k": 3, "max_tokens": 5, "seed": 7,
    }  # fmt: skip
    assert "top_p" not in body and body["messages"][0] == {"role": "system", "content": "Be brief."}
    page.type("#field-temperature", "-1")
    assert "temperature" in ask(page, "Again", 4)  # the server's words about a bad value are shown
    assert page.run("Boolean(document.querySelector('.error'))")
    page.complaints[:] = [text for text in page.complaints if "400" not in text]  # the browser's note on that answer


def test_chinese(bundled):
    with Browser("zh-CN") as page:
        page.go(bundled.url + "/", READY)
        assert page.run("document.documentElement.lang") == "zh-CN"
        assert page.run("document.querySelector('#send').textContent") == "发送"
        assert "杭州" in ask(page, "浙江的省会在哪里？", 2)
        page.click("#language")
        assert page.run("document.querySelector('#send').textContent") == "Send"
        page.go(bundled.url + "/dashboard", READY)
        assert (
            page.run("document.querySelector('#card-queue h3').textContent") == "Requests in the engine"
        )  # it is remembered
        assert page.complaints == []


def test_stop_and_keys(endless, page):
    page.go(endless.url + "/", READY.split("&&")[0])
    page.type("#prompt", "hello")
    page.click("#send")
    page.wait("document.querySelector('.error')")  # no key: the settings open, where it goes
    page.type("#api-key", "sesame")
    page.click(".assistant .retry")
    page.wait("!document.querySelector('.error') && document.querySelector('.assistant .body').textContent.length > 20")
    assert page.run("document.querySelector('#send').hidden")
    page.click("#stop")
    page.wait(DONE + "2")
    assert "stopped" in page.run("document.querySelector('.assistant .actions').innerText")
    page.click(".assistant .retry")
    page.wait("(document.querySelector('.assistant .body')?.textContent ?? '').length > 20")
    page.click("#new")  # in the middle of an answer, of which nothing comes into the new chat
    deadline = time.monotonic() + 60
    while endless.metric("num_requests_running"):
        assert time.monotonic() < deadline
    assert page.run("document.querySelectorAll('.message').length") == 0 and not page.run(
        "document.querySelector('#send').hidden"
    )
    assert page.run("JSON.stringify(localStorage) + document.cookie").count("sesame") == 0
    assert all("401" in text for text in page.complaints)  # the browser's own note on the refusal
    page.complaints.clear()


def test_text_of_a_model_stays_text(bundled, page):
    page.go(bundled.url + "/", READY)
    page.run(
        "import('/ui/markdown.js').then((m) => { const d = document.createElement('div'); d.id = 'made'; d.className = 'body'; "
        f"d.append(m.markdown({json.dumps(HOSTILE)}, {{copy: 'Copy', copied: 'Copied'}})); document.body.append(d) }})"
    )
    assert page.run("window.hurt === undefined")
    tags = page.run("[...document.querySelectorAll('#made *')].map((e) => e.tagName.toLowerCase())")
    assert not {"img", "script", "i"} & set(tags)
    assert {"strong", "code", "pre", "table", "ol", "ul"} <= set(tags)
    assert page.run("[...document.querySelectorAll('#made a')].map((a) => a.href)") == ["https://example.org/a"]
    assert page.run("document.querySelector('#made pre').textContent") == '<b onclick="x">&amp;</b>'
    assert "<img src=x onerror=" in page.run("document.querySelector('#made').textContent")


def test_markdown_takes_any_prefix(bundled, page):
    """While an answer streams, every prefix of it is drawn; no text is lost on the way."""
    page.go(bundled.url + "/", READY)
    lost = page.run(
        "import('/ui/markdown.js').then((m) => { const text = " + json.dumps(HOSTILE * 2) + "; const lost = []; "
        "const bare = (t) => t.replace(/[^a-z0-9]/gi, ''); "
        "for (let n = 0; n <= text.length; n++) { const d = document.createElement('div'); "
        "d.append(m.markdown(text.slice(0, n), {copy: '', copied: ''})); "
        "if (bare(d.textContent).length < bare(text.slice(0, n)).length - 60) lost.push(n) } return lost })"
    )
    assert lost == []


@pytest.mark.parametrize("path", ["/", "/dashboard"])
def test_phone_width(bundled, page, path):
    page.resize(360, 640)
    page.go(bundled.url + path, READY)
    if path == "/":
        ask(page, "What is the capital of France?", 2)
        page.click("#toggle-settings")
        page.type("#system", "Be brief.")
        page.click("#close-settings")
        page.click("#new")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


def test_every_control_has_a_name(bundled, page):
    page.go(bundled.url + "/", READY)
    page.click("#toggle-settings")
    ask(page, "Hello", 2)
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in nodes if n.get("role", {}).get("value") in ("button", "textbox", "spinbutton", "link")]
    assert len(controls) > 15
    assert [n for n in controls if not n.get("name", {}).get("value")] == []


def test_dashboard_under_load(bundled, page):
    page.go(bundled.url + "/dashboard", READY)
    body = {"messages": [{"role": "user", "content": "Tell me a story."}], "ignore_eos": True, "max_tokens": 60}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        posts = [
            pool.submit(httpx.post, bundled.url + "/v1/chat/completions", json=body, timeout=60) for _ in range(12)
        ]
        assert all(post.result().status_code == 200 for post in posts)
    page.wait("[...document.querySelectorAll('#card-e2e .legend b')].every((b) => b.textContent !== '–')")
    page.wait("document.querySelectorAll('#card-throughput path.line')[0].getAttribute('d').includes('L')")
    shown = page.run(
        "Object.fromEntries([...document.querySelectorAll('.card')].map((c) => [c.id, c.querySelector('.legend').innerText]))"
    )
    assert len(shown) == 9 and "ms" in shown["card-itl"] and "%" in shown["card-kv"]
    p50, p90, p99 = page.run(
        "[...document.querySelectorAll('#card-ttft .legend b')].map((b) => parseFloat(b.textContent) * (b.textContent.includes('ms') ? 1 : 1000))"
    )
    assert 0 < p50 <= p90 <= p99


def test_an_empty_chat_offers_questions(bundled, page):
    page.go(bundled.url + "/", READY)
    page.click(".chip")
    page.wait(DONE + "2")
    assert "Paris" in last_answer(page)


def test_a_chat_outlives_a_look_at_the_dashboard(bundled, page):
    page.go(bundled.url + "/", READY)
    ask(page, "What is the capital of France?", 2)
    page.go(bundled.url + "/dashboard", READY)
    page.go(bundled.url + "/", READY)
    assert "Paris" in last_answer(page) and "tokens" in page.run(
        "document.querySelector('.assistant .note').textContent"
    )
    page.click("#new")
    page.go(bundled.url + "/", READY)
    assert page.run("document.querySelectorAll('.message').length") == 0


def test_keys(endless, page):
    """Escape stops an answer and leaves an edit, the arrow up edits the last question, and the focus is where one goes on."""
    focused = "document.activeElement"
    page.go(endless.url + "/", READY.split("&&")[0])
    page.click("#toggle-settings")
    page.type("#api-key", "sesame")
    page.press("Escape")
    page.wait("!document.body.classList.contains('with-settings')")
    assert page.run(f"{focused}.id") == "toggle-settings"
    page.type("#prompt", "hello")
    page.press("Enter")
    page.wait("document.querySelector('.streaming')")
    page.press("Escape")
    page.wait(DONE + "2")
    assert page.run(f"{focused}.id") == "prompt"
    page.press("ArrowUp")
    page.wait("document.querySelector('.editor textarea')?.value === 'hello'")
    page.press("Escape")
    page.wait("!document.querySelector('.editor')")
    assert page.run(f"{focused}.classList.contains('edit')")
    page.complaints[:] = [text for text in page.complaints if "401" not in text]  # of the models before there was a key


def test_who_reads_above_is_left_there(endless, page):
    """An answer that goes on below moves nothing; a button leads to its end."""
    page.resize(400, 500)
    page.go(endless.url + "/", READY.split("&&")[0])
    page.run("document.querySelector('#api-key').value = 'sesame'")
    page.type("#prompt", "hello")
    page.press("Enter")
    box = "document.querySelector('#messages')"
    page.wait(f"{box}.scrollHeight > {box}.clientHeight + 400")
    page.run(f"{box}.scrollTop = 0")
    page.wait("!document.querySelector('#to-end').hidden")
    height = page.run(f"{box}.scrollHeight")
    page.wait(f"{box}.scrollHeight > {height}")
    page.press("Escape")
    page.wait(DONE + "2")
    assert page.run(f"{box}.scrollTop") == 0
    page.click("#to-end")
    page.wait(f"document.querySelector('#to-end').hidden && {box}.scrollTop > 400")
    page.complaints[:] = [text for text in page.complaints if "401" not in text]


def test_the_dashboard_shows_the_values_of_an_earlier_second(bundled, page):
    page.go(bundled.url + "/dashboard", READY)
    page.wait("document.querySelectorAll('#card-queue .line').length === 2")
    x, y = page.run(
        "(() => { const r = document.querySelector('#card-queue .plot').getBoundingClientRect(); return [r.right - 20, r.y + 20] })()"
    )
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    page.wait("document.querySelectorAll('.cross').length === 9")
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
    page.wait("document.querySelectorAll('.cross').length === 0")


def test_a_server_that_is_gone_is_named(tmp_path):
    """In the language of the page, in place of the browser's own words."""
    with Server(tmp_path / "log", None) as server, Browser("zh-CN") as page:
        page.go(server.url + "/", READY)
        server.kill()
        page.type("#prompt", "你好")
        page.press("Enter")
        page.wait("document.querySelector('.error')?.textContent === '错误：服务器没有响应'")
        page.wait("document.querySelector('#status.gone')")
