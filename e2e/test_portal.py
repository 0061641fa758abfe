"""The page for people, in a real browser: what a customer does there, and what it must never do."""

import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import urllib.parse
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from support import DEADLINE, PLAIN_SECRET, Receiver, eventually, verify

ROOT = Path(__file__).parent.parent
SCREENSHOTS = Path(os.environ.get("NANO_SCREENSHOTS") or ROOT / "target/screenshots")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
DESKTOP = {"width": 1200, "height": 850}
PHONE = {"width": 360, "height": 740}
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script><b>&amp;"
# What Chromium itself writes of an answer that a test provokes.
REFUSED = "Failed to load resource: the server responded with a status of {}"


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium") or "/usr/bin/chromium"
    assert os.access(path, os.X_OK), "Chromium is missing: install it, on Debian with `apt-get install chromium`"
    expect.set_options(timeout=DEADLINE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens the page for an account; what must never happen on it is checked when the test is through."""
    return lambda api, **options: Visit.open(chromium, api, **options)


@pytest.fixture(scope="module")
def quick(start):
    """A service whose schedule is soon exhausted."""
    return start("--in-memory", "--retry-schedule", "100ms")


class Visit:
    """A person's tab."""

    def __init__(self, page, api):
        self.page, self.api = page, api
        self.said, self.urls, self.dialogs = [], [], []
        self.main = page.locator("main")
        self.status = page.locator("#said")
        page.set_default_timeout(DEADLINE * 1000)
        page.on("console", lambda message: message.type in ("error", "warning") and self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("framenavigated", lambda frame: self.urls.append(frame.url))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))

    @classmethod
    @contextlib.contextmanager
    def open(cls, chromium, api, key=None, expected=(), **options):
        """`key=""` leaves the key to be typed; `expected` are the only errors that may show in the console."""
        options = {"viewport": DESKTOP, "color_scheme": "light", "locale": "en-US", "timezone_id": "UTC"} | options
        options["permissions"] = ["clipboard-read"]
        with contextlib.closing(chromium.new_context(**options)) as context:
            context.add_init_script(
                "addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.violatedDirective))"
            )
            visit = cls(context.new_page(), api)
            visit.page.goto(f"{api.url}/portal")
            if key is None:
                visit.give(api.key)
                expect(visit.heading("Webhooks")).to_be_focused()
            yield visit
            visit.check(context, expected)

    def give(self, key):
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Show my webhooks").click()

    def go(self, path):
        """Follows an address, as a bookmark would."""
        self.page.evaluate("path => { location.hash = path }", f"#/{path}")

    def heading(self, name):
        return self.page.get_by_role("heading", name=name, exact=True)

    def press(self, name):
        self.page.get_by_role("button", name=name, exact=True).click()

    def follow(self, name):
        self.page.get_by_role("link", name=name, exact=True).click()

    def says(self, text):
        expect(self.status).to_have_text(text)

    def block(self, label, within=None):
        """Text that can be copied."""
        return (within or self.page).get_by_role("region", name=label, exact=True)

    def rows(self):
        return self.page.locator("tbody tr")

    def shot(self, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True, animations="disabled")

    def check(self, context, expected):
        assert not self.dialogs, "a script from data was run"
        unexpected = [text for text in self.said if not text.startswith(tuple(expected))]
        assert not unexpected and (self.said or not expected), self.said
        foreign = [url for url in self.urls if not url.startswith(f"{self.api.url}/")]
        assert not foreign, f"a request left the origin: {foreign}"
        assert not [url for url in self.urls if "sk-" in url], "the key is in a URL"
        kept = self.page.evaluate("[localStorage.length, document.cookie]")
        assert kept == [0, ""] and not context.cookies(), kept


def reply(status, body=b""):
    return lambda handler: handler.reply(status, [("Content-Type", "text/plain")], body)


def job(service, api, name, status="completed", **data):
    service.put_job(f"{api.account}-{name}", api.account, status, data={"M": data})


def settled(api, webhook, status, count=1):
    eventually(lambda: len(api.log(webhook, status=status)) == count, lambda: f"{count} {status}: {api.log(webhook)}")
    return api.log(webhook, status=status)


def test_a_customer_registers_looks_for_a_fault_repairs_it_and_leaves(quick, visit, receiver):
    service, api = quick, quick.new_account()
    with visit(api, key="", expected=[REFUSED.format(400), REFUSED.format(404)]) as tab:
        page = tab.page
        expect(page).to_have_title("API key · Webhooks")
        tab.give(api.key)

        # Registers.
        expect(tab.heading("No webhooks yet")).to_be_visible()
        tab.follow("Add a webhook")
        page.get_by_label("Endpoint URL").fill(f"{receiver.url}/hook")
        page.get_by_label("Description").fill("Renders for the shop")
        page.get_by_label("Signing secret").fill(PLAIN_SECRET)
        tab.press("Add the webhook")
        tab.says("The webhook was added. Send it a test event.")
        (listed,) = api.list().data
        webhook = listed["id"]
        assert (listed["url"], listed["events"]) == (f"{receiver.url}/hook", ["job.completed", "job.failed"])
        expect(page).to_have_url(f"{api.url}/portal#/webhooks/{webhook}/test")

        # Sees a first event arrive.
        tab.follow("Deliveries")
        expect(page.get_by_text("Nothing was sent to this webhook yet.")).to_be_visible()
        job(service, api, "first")
        settled(api, webhook, "delivered")
        tab.press("Refresh")
        expect(tab.rows()).to_have_count(1)
        expect(tab.rows()).to_contain_text("delivered")

        # The receiver breaks: what happened, and why?
        receiver.answer("/hook", reply(500, b"KeyError: 'credits'"))
        job(service, api, "second", credits_charged={"N": "6"})
        (failed,) = settled(api, webhook, "failed")
        page.get_by_label("Status").select_option("failed")
        expect(tab.rows()).to_have_count(1)
        expect(page).to_have_url(re.compile(r"\?status=failed$"))
        page.get_by_label("Event").select_option("job.failed")
        expect(page.get_by_text("No delivery matches these filters.")).to_be_visible()
        page.go_back()
        expect(tab.rows()).to_have_count(1)
        expect(tab.rows()).to_contain_text(["error status"])
        tab.follow(f"job.completed {failed['task_id']}")
        expect(tab.heading("job.completed")).to_be_focused()
        known = api.delivery(webhook, failed["event_id"]).data
        first, second = known["attempts"]
        newest = page.get_by_role("listitem").filter(has_text=f"Attempt {second['number']}")
        expect(newest).to_contain_text(second["detail"])
        expect(newest.get_by_label("Phases", exact=True)).to_contain_text("Wait for the answer")
        expect(tab.block("Response, status 500", newest)).to_have_text("KeyError: 'credits'")
        for name in ("x-nano-signature", "webhook-signature"):
            expect(newest.get_by_role("row", name=name)).to_contain_text(second["request_headers"][name])
        older = page.get_by_role("listitem").filter(has_text=f"Attempt {first['number']}")
        expect(older.get_by_text(first["detail"])).to_be_hidden()
        older.get_by_text(f"Attempt {first['number']}").click()
        expect(older.get_by_text(first["detail"])).to_be_visible()
        payload = tab.block("Payload")
        assert payload.inner_text() == json.dumps(json.loads(known["payload"]), indent=2, ensure_ascii=False)
        tab.press("As sent")
        expect(payload).to_have_text(known["payload"])
        tab.shot("story-failed-delivery")

        # A test event shows the same, and what was signed.
        before = len(receiver.at("/hook"))
        tab.go(f"webhooks/{webhook}/test")
        page.get_by_label("Event").select_option("job.failed")
        tab.press("Send a test event")
        expect(tab.heading("The test event was refused")).to_be_focused()
        expect(tab.main).to_contain_text("KeyError: 'credits'")
        expect(page.get_by_label("Phases", exact=True)).to_contain_text("Connect")
        (received,) = receiver.at("/hook")[before:]
        assert received.json["event"] == "job.failed"
        signed = tab.block("What was signed").inner_text()
        digest = hmac.new(PLAIN_SECRET.encode(), signed.encode(), hashlib.sha256).hexdigest()
        assert received.headers["x-nano-signature"] == f"v1={digest}"
        tab.shot("story-test-refused")

        # The receiver is repaired.
        receiver.answer("/hook", reply(200))
        tab.press("Send a test event")
        expect(tab.heading("The test event was accepted")).to_be_focused()
        tab.go(f"webhooks/{webhook}/deliveries/{failed['event_id']}")
        tab.press("Send it again now")
        tab.says("Attempt 3 was accepted with status 200.")
        expect(page.get_by_role("listitem").filter(has_text="Attempt 3")).to_contain_text("Accepted with status 200.")
        assert api.delivery(webhook, failed["event_id"]).data["status"] == "delivered"
        verify(receiver.at("/hook"), PLAIN_SECRET)

        # What failed in the meantime is replayed.
        receiver.answer("/hook", reply(503))
        for number in range(3):
            job(service, api, f"lost-{number}")
        settled(api, webhook, "failed", 3)
        receiver.answer("/hook", reply(200))
        tab.go(f"webhooks/{webhook}/replay")
        tab.press("hour")
        tab.press("Start the replay")
        expect(page.get_by_role("progressbar", name="Sent")).to_be_visible()
        tab.says("The replay is done: 3 delivered, 0 failed.")
        for fact in ("Found3", "Sent3", "Delivered3", "Failed0"):
            expect(page.locator("dl > div").filter(has_text=re.compile(f"^{fact}$"))).to_be_visible()
        settled(api, webhook, "delivered", 5)
        tab.shot("story-replay")

        # The secret is rotated, and shown once.
        tab.follow("Settings")
        page.get_by_label("Hours for which").fill("999")
        tab.press("Rotate the secret")
        expect(page.get_by_role("alert")).to_contain_text("grace_hours")
        page.get_by_label("Hours for which").fill("1")
        tab.press("Rotate the secret")
        secret = page.get_by_role("dialog").get_by_role("region").inner_text()
        assert secret.startswith("whsec_")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_visible()
        tab.press("Copy: New signing secret")
        tab.says("Copied.")
        assert page.evaluate("navigator.clipboard.readText()") == secret
        tab.press("I have copied it")
        expect(page.locator("dialog")).to_have_count(0)
        assert secret not in page.content()
        job(service, api, "rotated")
        settled(api, webhook, "delivered", 6)
        verify(receiver.at("/hook")[-1:], secret)

        # Disables it, changes its mind, disables it again, deletes it.
        for wanted in ("disabled", "enabled", "disabled"):
            if wanted == "disabled":
                tab.press("Disable…")
                page.get_by_role("dialog").get_by_role("button", name="Disable", exact=True).click()
            else:
                page.get_by_role("button", name="Enable").last.click()
            tab.says(f"The webhook is {wanted}.")
            expect(page.get_by_text("This webhook is disabled.")).to_have_count(1 if wanted == "disabled" else 0)
            assert api.status(webhook) == ("disabled" if wanted == "disabled" else "active")
        tab.press("Delete…")
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        assert len(api.list().data) == 1
        tab.press("Delete…")
        tab.press("Delete the webhook")
        tab.says(f"Webhook {webhook} is deleted.")
        expect(tab.heading("No webhooks yet")).to_be_visible()
        assert api.list().data == []
        tab.go(f"webhooks/{webhook}")
        expect(page.get_by_text("This webhook was deleted.")).to_be_visible()
        expect(tab.rows()).to_have_count(6)

        tab.press("Forget key")
        expect(page.get_by_label("API key")).to_be_focused()
        page.go_back()
        expect(page.get_by_label("API key")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_a_wrong_key_is_refused_in_the_words_of_the_api(service, visit, api):
    with visit(api, key="", expected=[REFUSED.format(401)]) as tab:
        tab.give("sk-wrong")
        alert = tab.page.get_by_role("alert")
        expect(alert).to_contain_text("Invalid or missing API key")
        expect(alert).to_contain_text("401 unauthorized")
        expect(alert).to_contain_text(re.compile(r"request id \S{8,}"))
        expect(tab.page.get_by_label("API key")).to_be_focused()
        tab.give("sk-schlüssel")
        expect(alert).to_contain_text("letters and digits")
        tab.give(api.key)
        expect(tab.heading("No webhooks yet")).to_be_visible()
        # The tab remembers it over a reload, and nothing else does.
        tab.page.reload()
        expect(tab.heading("No webhooks yet")).to_be_visible()


def test_what_the_api_refuses_is_shown_where_it_is_wrong(service, visit, api, receiver):
    expected = [REFUSED.format(status) for status in (400, 404, 409)]
    with visit(api, expected=expected) as tab:
        tab.go("new")
        url = tab.page.get_by_label("Endpoint URL")
        url.fill("ftp://example.com/")
        tab.press("Add the webhook")
        expect(url).to_be_focused()
        expect(url).to_have_attribute("aria-invalid", "true")
        refused = api.post({"url": "ftp://example.com/", "events": ["job.failed"]})
        message = refused.is_error(400, "invalid_request").message
        expect(url).to_have_accessible_description(message.removeprefix("url: "))
        expect(tab.page.get_by_role("alert")).to_contain_text(message)
        url.fill(f"{receiver.url}/hook")
        for event in ("job.completed", "job.failed"):
            tab.page.get_by_label(event).uncheck()
        tab.press("Add the webhook")
        expect(tab.page.get_by_role("group", name="Events")).to_have_attribute("aria-invalid", "true")
        expect(url).not_to_have_attribute("aria-invalid", "true")
        assert api.list().data == []

        tab.go("webhooks/7")
        expect(tab.page.get_by_role("alert")).to_contain_text("404 not_found")
        tab.go("nowhere")
        expect(tab.heading("There is no such page")).to_be_focused()

        # A delivery cannot be retried while its webhook is disabled.
        webhook = api.subscribe(f"{receiver.url}/hook")
        job(service, api, "job")
        event = api.row(webhook, lambda row: row["status"] == "delivered")["event_id"]
        tab.go(f"webhooks/{webhook}/deliveries/{event}")
        expect(tab.heading("job.completed")).to_be_visible()
        api.call("PATCH", f"/api/v1/webhooks/{webhook}", {"status": "disabled"})
        tab.press("Send it again now")
        expect(tab.page.get_by_role("alert")).to_contain_text("409 conflict")


def test_too_many_requests_and_an_outage_are_told(start, visit):
    service = start("--in-memory", env={"RATE_LIMIT_PER_DAY": "1"})
    expected = [REFUSED.format(429), "Failed to load resource: net::ERR_CONNECTION"]
    with visit(service.api, key="", expected=expected) as tab:
        # The first request tries the key; the second would be the list.
        tab.give(service.api.key)
        expect(tab.heading("That did not work")).to_be_focused()
        alert = tab.page.get_by_role("alert")
        expect(alert).to_contain_text("429 rate_limited")
        expect(alert).to_contain_text(re.compile(r"try again in \d+ (second|minute|hour)s? · request id \S+"))
        service.kill()
        tab.press("Try again")
        expect(alert).to_contain_text("The service could not be reached")


def test_a_replay_is_cancelled(quick, visit, receiver):
    api = quick.new_account()
    receiver.answer("/hook", reply(500))
    webhook = api.subscribe(f"{receiver.url}/hook")
    for number in range(40):
        job(quick, api, number)
    settled(api, webhook, "failed", 40)
    receiver.hang("/hook")
    with visit(api) as tab:
        tab.go(f"webhooks/{webhook}/replay")
        tab.press("24 hours")
        tab.page.get_by_label("What failed").check()
        tab.press("Start the replay")
        expect(tab.page.get_by_text("running", exact=True)).to_be_visible()
        # It is a page of its own, which can be left and come back to.
        tab.page.reload()
        tab.press("Cancel the replay")
        expect(tab.page.get_by_text("cancelled", exact=True)).to_be_visible()
        expect(tab.status).to_contain_text("The replay is cancelled")
        expect(tab.heading("Replay")).to_be_focused()


def test_hostile_text_is_shown_and_never_run(quick, visit, receiver):
    api = quick.new_account()
    path = "/<img/src=x/onerror=alert(1)></script><script>alert(2)</script>"
    receiver.answer(urllib.parse.quote(path, safe="/()="), reply(500, HOSTILE.encode()))
    webhook = api.post({"url": receiver.url + path, "events": ["job.completed"], "description": HOSTILE})
    assert webhook.status == 201, webhook.text
    webhook = webhook.data["id"]
    task = f"{api.account}-{HOSTILE}"
    quick.put_job(task, api.account, data={"M": {HOSTILE: {"S": HOSTILE}}})
    (failed,) = settled(api, webhook, "failed")
    with visit(api, expected=[REFUSED.format(400)]) as tab:
        expect(tab.rows().get_by_role("link")).to_have_text(receiver.url + path)
        expect(tab.rows()).to_contain_text("failing")
        tab.go(f"webhooks/{webhook}")
        expect(tab.heading(receiver.url + path)).to_be_focused()
        expect(tab.main.get_by_role("definition").first).to_have_text(HOSTILE)
        expect(tab.rows()).to_contain_text(task)
        tab.go(f"webhooks/{webhook}/deliveries/{failed['event_id']}")
        expect(tab.block("Response, status 500")).to_have_text(HOSTILE)
        expect(tab.block("Payload")).to_contain_text(json.dumps(HOSTILE))
        tab.shot("hostile-text")
        tab.go(f"webhooks/{webhook}/settings")
        expect(tab.page.get_by_label("Description")).to_have_value(HOSTILE)
        tab.go(f"webhooks/{webhook}/test")
        tab.press("Send a test event")
        expect(tab.block("Response, status 500")).to_have_text(HOSTILE)
        # Neither does what an address asks for become part of the page.
        tab.go(f"webhooks/{webhook}?status={HOSTILE}")
        expect(tab.main).to_contain_text("status: expected")
        assert tab.main.locator("img, script, b").count() == 0


def test_a_long_list_goes_on_where_it_ended(quick, visit, receiver):
    api = quick.new_account()
    webhook = api.subscribe(f"{receiver.url}/hook")
    for number in range(57):
        job(quick, api, f"{number:02}")
    settled(api, webhook, "delivered", 57)
    with visit(api) as tab:
        tab.follow(f"{receiver.url}/hook")
        expect(tab.rows()).to_have_count(50)
        tab.press("Load more")
        tab.says("57 deliveries shown.")
        expect(tab.rows()).to_have_count(57)
        expect(tab.page.get_by_role("button", name="Load more")).to_be_hidden()
        expect(tab.rows().nth(50).get_by_role("link")).to_be_focused()
        shown = tab.rows().get_by_role("link").evaluate_all("links => links.map((link) => link.ariaLabel)")
        assert shown == [f"job.completed {row['task_id']}" for row in api.log(webhook)]
        # Back and forward.
        tab.rows().first.get_by_role("link").click()
        expect(tab.heading("job.completed")).to_be_focused()
        tab.page.go_back()
        expect(tab.heading(f"{receiver.url}/hook")).to_be_focused()
        tab.page.go_back()
        expect(tab.heading("Webhooks")).to_be_focused()
        tab.page.go_forward()
        expect(tab.heading(f"{receiver.url}/hook")).to_be_focused()


def test_of_two_answers_the_one_that_was_asked_for_last_is_shown(service, visit, api, receiver):
    webhook = api.subscribe(f"{receiver.url}/hook")
    job(service, api, "job")
    settled(api, webhook, "delivered")
    with visit(api) as tab:
        held = []
        tab.go(f"webhooks/{webhook}")
        expect(tab.rows()).to_have_count(1)
        tab.page.route(re.compile(r"deliveries\?status=delivered$"), lambda route: held.append(route))
        tab.page.get_by_label("Status").select_option("delivered")
        tab.page.get_by_label("Event").select_option("job.failed")
        nothing = tab.page.get_by_text("No delivery matches these filters.")
        expect(nothing).to_be_visible()
        with tab.page.expect_response(held[0].request.url) as late:
            held[0].continue_()
        assert late.value.json()["data"]
        # The page has had the time to show it by the frame after the next.
        tab.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        expect(nothing).to_be_visible()
        expect(tab.rows()).to_have_count(0)


def test_a_webhook_is_registered_and_deleted_by_keyboard_alone(service, visit, api, receiver):
    with visit(api, key="") as tab:
        keyboard = tab.page.keyboard

        def tab_to(target, step="Tab"):
            for _ in range(30):
                if target.evaluate("node => node === document.activeElement"):
                    return
                keyboard.press(step)
            raise AssertionError(f"{target} is not reached with {step}")

        button = lambda name: tab.page.get_by_role("button", name=name, exact=True)
        keyboard.type(api.key)
        keyboard.press("Enter")
        expect(tab.heading("Webhooks")).to_be_focused()
        tab_to(tab.page.get_by_role("link", name="Add a webhook"))
        keyboard.press("Enter")
        expect(tab.heading("Add a webhook")).to_be_focused()
        tab_to(tab.page.get_by_label("Endpoint URL"))
        keyboard.type(f"{receiver.url}/hook")
        tab_to(tab.page.get_by_label("job.failed"))
        keyboard.press("Space")
        tab_to(button("Generate"))
        keyboard.press("Enter")
        secret = tab.page.get_by_label("Signing secret").input_value()
        assert secret.startswith("whsec_")
        tab_to(button("Add the webhook"))
        keyboard.press("Enter")
        expect(tab.heading(f"{receiver.url}/hook")).to_be_focused()
        (webhook,) = api.list().data
        assert webhook["events"] == ["job.completed"]
        job(service, api, "job")
        verify(receiver.wait_for("/hook"), secret)

        tab_to(tab.page.get_by_role("link", name="Settings"))
        keyboard.press("Enter")
        expect(tab.page.get_by_label("Endpoint URL")).to_be_visible()
        tab_to(button("Delete…"))
        keyboard.press("Enter")
        expect(button("Cancel")).to_be_focused()
        keyboard.press("Escape")
        expect(button("Delete…")).to_be_focused()
        keyboard.press("Enter")
        expect(button("Cancel")).to_be_focused()
        tab_to(button("Delete the webhook"), "Shift+Tab")
        keyboard.press("Enter")
        expect(tab.heading("Webhooks")).to_be_focused()
        assert api.list().data == []


@pytest.fixture(scope="module")
def furnished(quick):
    """An account with something of everything, and the views to look at."""
    receiver = Receiver()
    api = quick.new_account()
    secret = {"secret_key": PLAIN_SECRET, "description": "Renders for the shop, billed to the team of the north"}
    events = ["job.completed", "job.failed"]
    main = api.post({"url": f"{receiver.url}/hooks/renders", "events": events, **secret}).data["id"]
    api.subscribe(f"{receiver.url}/ok")
    disabled = api.subscribe(f"{receiver.url}/{'a-long-path/' * 12}")
    api.call("PATCH", f"/api/v1/webhooks/{disabled}", {"status": "disabled"})
    job(quick, api, "first", url={"S": "https://cdn.example.com/image.png"}, credits_charged={"N": "6"})
    settled(api, main, "delivered")
    receiver.answer("/hooks/renders", reply(500, b"Traceback (most recent call last):\n  KeyError: 'credits'\n"))
    for number in range(4):
        job(quick, api, f"render-{number}", "failed" if number == 2 else "completed", credits_charged={"N": "6"})
    event = settled(api, main, "failed", 4)[0]["event_id"]
    views = {
        "list": ("", "Webhooks"),
        "new": ("new", "Add a webhook · Webhooks"),
        "deliveries": (f"webhooks/{main}", f"Deliveries of webhook {main} · Webhooks"),
        "delivery": (f"webhooks/{main}/deliveries/{event}", re.compile(r"^job\.")),
        "test": (f"webhooks/{main}/test", f"Test of webhook {main} · Webhooks"),
        "replay": (f"webhooks/{main}/replay", f"Replay of webhook {main} · Webhooks"),
        "settings": (f"webhooks/{main}/settings", f"Settings of webhook {main} · Webhooks"),
        "disabled": (f"webhooks/{disabled}", f"Deliveries of webhook {disabled} · Webhooks"),
    }
    yield api, views
    receiver.close()


@pytest.mark.parametrize("scheme, viewport", [("light", DESKTOP), ("dark", DESKTOP), ("light", PHONE), ("dark", PHONE)])
def test_every_view_fits_and_is_accessible(furnished, visit, scheme, viewport):
    api, views = furnished
    axe = (Path(os.environ["NANO_NODE"]) / "node_modules/axe-core/axe.min.js").read_text()
    faults = []

    def look(name):
        tab.shot(f"{name}-{scheme}-{viewport['width']}")
        if tab.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            faults.append(f"{name}: wider than {viewport['width']} px")
        for fault in tab.page.evaluate("async () => (await axe.run()).violations"):
            nodes = [node["html"][:200] for node in fault["nodes"]]
            if fault["impact"] in ("serious", "critical"):
                faults.append(f"{name}: {fault['id']}: {fault['help']}: {nodes}")

    with visit(api, key="", color_scheme=scheme, viewport=viewport) as tab:
        # The policy refuses script elements, as it should; what the debugger evaluates is not subject to it.
        tab.page.evaluate(f"() => {{ {axe} }}")
        look("key")
        tab.give(api.key)
        for name, (path, title) in views.items():
            tab.go(path)
            expect(tab.page).to_have_title(title)
            if name == "list":
                expect(tab.rows()).to_have_count(3)
                expect(tab.main).not_to_contain_text("…")
            if name == "test":
                tab.press("Send a test event")
                expect(tab.heading("The test event was refused")).to_be_focused()
            look(name)
        tab.go(views["settings"][0])
        expect(tab.page).to_have_title(views["settings"][1])
        tab.press("Delete…")
        expect(tab.page.get_by_role("dialog")).to_be_visible()
        look("dialog")
    assert not faults, "\n".join(faults)
