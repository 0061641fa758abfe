"""The portal in a real browser: what a customer does there, and what the page must never do."""

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
import standardwebhooks
from playwright.sync_api import expect, sync_playwright

from support import (
    PLAIN_SECRET,
    TEST_TIMEOUT,
    Receiver,
    respond_with,
    verify_signatures,
    wait_until,
)

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
# Chromium writes this to the console for an error response.
CONSOLE_ERROR = "Failed to load resource: the server responded with a status of {}"


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium") or "/usr/bin/chromium"
    assert os.access(path, os.X_OK), (
        "Chromium is missing: install it, on Debian with `apt-get install chromium`"
    )
    expect.set_options(timeout=TEST_TIMEOUT * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """`visit(api)` opens the portal for an account, and checks the general rules when the test is
    done.
    """
    return lambda api, **options: Visit.open(chromium, api, **options)


class Visit:
    """A browser tab with the portal."""

    def __init__(self, page, api):
        self.page, self.api = page, api
        self.messages, self.urls, self.dialogs = [], [], []
        self.main = page.locator("main")
        self.status = page.locator("#announcement")
        page.set_default_timeout(TEST_TIMEOUT * 1000)
        page.on(
            "console",
            lambda message: (
                message.type in ("error", "warning") and self.messages.append(message.text)
            ),
        )
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("framenavigated", lambda frame: self.urls.append(frame.url))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))

    @classmethod
    @contextlib.contextmanager
    def open(cls, chromium, api, key=None, expected=(), **options):
        """Opens the page and enters the key, unless `key` is "".

        Only `expected` errors may appear in the console.
        """
        options = {
            "viewport": DESKTOP,
            "color_scheme": "light",
            "locale": "en-US",
            "timezone_id": "UTC",
        } | options
        options["permissions"] = ["clipboard-read"]
        with contextlib.closing(chromium.new_context(**options)) as context:
            context.add_init_script(
                "addEventListener('securitypolicyviolation', "
                "(event) => console.error('CSP', event.violatedDirective))"
            )
            visit = cls(context.new_page(), api)
            visit.page.goto(f"{api.url}/portal")
            if key is None:
                visit.enter_key(api.key)
                expect(visit.heading("Webhooks")).to_be_focused()
            yield visit
            visit.check(context, expected)

    def enter_key(self, key):
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Show my webhooks").click()

    def go(self, path):
        """Opens a view by its address, as a bookmark does."""
        self.page.evaluate("path => { location.hash = path }", f"#/{path}")

    def heading(self, name):
        return self.page.get_by_role("heading", name=name, exact=True)

    def press(self, name):
        self.page.get_by_role("button", name=name, exact=True).click()

    def follow(self, name):
        self.page.get_by_role("link", name=name, exact=True).click()

    def expect_fact(self, text):
        fact = self.page.locator("dl > div").filter(has_text=re.compile(f"^{re.escape(text)}$"))
        expect(fact).to_be_visible()

    def expect_status(self, text):
        expect(self.status).to_have_text(text)

    def text_block(self, label, within=None):
        """A block of text that can be copied."""
        return (within or self.page).get_by_role("region", name=label, exact=True)

    def rows(self):
        return self.page.locator("tbody tr")

    def save_screenshot(self, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(
            path=SCREENSHOTS / f"{name}.png", full_page=True, animations="disabled"
        )

    def check(self, context, expected):
        """Checks the rules for every visit: no script from data, no other origin, and no key in a
        URL or in storage.
        """
        assert not self.dialogs, "a script from data ran"
        unexpected = [text for text in self.messages if not text.startswith(tuple(expected))]
        assert not unexpected and (self.messages or not expected), self.messages
        foreign = [url for url in self.urls if not url.startswith(f"{self.api.url}/")]
        assert not foreign, f"a request to another origin: {foreign}"
        assert not [url for url in self.urls if "sk-" in url], "the key is in a URL"
        stored = self.page.evaluate("[localStorage.length, document.cookie]")
        assert stored == [0, ""] and not context.cookies(), stored


def respond_with_text(status, body=b""):
    return respond_with(status, [("Content-Type", "text/plain")], body)


def put_job(service, api, name, status="completed", **data):
    service.put_job(f"{api.account}-{name}", api.account, status, data={"M": data})


def wait_for_status(api, webhook, status, count=1):
    """Waits until the log has `count` deliveries with this status, and returns their rows."""
    list_rows = lambda: api.list_deliveries(webhook, status=status)
    wait_until(
        lambda: len(list_rows()) == count,
        lambda: f"{count} {status}: {api.list_deliveries(webhook)}",
    )
    return list_rows()


class Journey:
    """A customer with one webhook, in steps that build on each other."""

    def __init__(self, service, api, receiver, tab):
        self.service, self.api, self.receiver, self.tab, self.page = (
            service,
            api,
            receiver,
            tab,
            tab.page,
        )
        self.webhook = self.failed_event = None

    def respond(self, status, body=b""):
        self.receiver.respond("/hook", respond_with_text(status, body))

    def register(self):
        """Adds a webhook, which opens the view for test events."""
        expect(self.tab.heading("No webhooks yet")).to_be_visible()
        self.tab.follow("Add a webhook")
        self.page.get_by_label("Endpoint URL").fill(f"{self.receiver.url}/hook")
        self.page.get_by_label("Description").fill("Renders for the shop")
        self.page.get_by_label("Signing secret").fill(PLAIN_SECRET)
        self.page.get_by_label("Headers optional").fill("X-Api-Key: gateway:key\n\nCookie: a=b")
        self.tab.press("Add the webhook")
        self.tab.expect_status("The webhook was added. Send it a test event.")
        (listed,) = self.api.list_webhooks().data
        self.webhook = listed["id"]
        assert (listed["url"], listed["events"]) == (
            f"{self.receiver.url}/hook",
            ["job.completed", "job.failed"],
        )
        expect(self.page).to_have_url(f"{self.api.url}/portal#/webhooks/{self.webhook}/test")

    def see_first_delivery(self):
        self.tab.follow("Deliveries")
        expect(self.page.get_by_text("No deliveries yet.")).to_be_visible()
        put_job(self.service, self.api, "first")
        wait_for_status(self.api, self.webhook, "delivered")
        self.tab.press("Refresh")
        expect(self.tab.rows()).to_have_count(1)
        expect(self.tab.rows()).to_contain_text("delivered")
        (request,) = self.receiver.requests_to("/hook")
        assert request.headers["x-api-key"] == "gateway:key"
        assert request.headers["cookie"] == "a=b"
        self.tab.expect_fact("HeadersCookieX-Api-Key")

    def change_headers(self):
        """Headers stay, are replaced as a whole, or are removed. Errors appear at their field."""
        self.tab.go(f"webhooks/{self.webhook}/settings")
        headers = self.page.get_by_label("Headers optional")
        expect(headers).to_have_value("")
        self.page.get_by_label("Description").fill("Renders")
        self.save_settings()
        for text, name in (("Host: example.org", "Host"), ("X-Key: é", "X-Key")):
            headers.fill(text)
            self.tab.press("Save changes")
            expect(headers).to_be_focused()
            expect(headers).to_have_attribute("aria-invalid", "true")
            expect(headers).to_have_accessible_description(re.compile(f"^{name}: expected"))
        headers.fill("X-Key: 1\nX-Key: 2")
        self.tab.press("Save changes")
        expect(headers).to_have_accessible_description(re.compile("^expected each name once"))
        assert self.api.get(self.webhook)["headers"] == ["Cookie", "X-Api-Key"]
        headers.fill("authorization: Bearer token")
        self.save_settings()
        assert self.api.get(self.webhook)["headers"] == ["authorization"]
        self.page.get_by_label("Remove the headers authorization").check()
        self.save_settings()
        assert self.api.get(self.webhook)["headers"] == []
        expect(self.page.get_by_label("Remove the headers")).to_have_count(0)
        assert "Bearer token" not in self.page.content()

    def save_settings(self):
        self.tab.press("Save changes")
        self.tab.expect_status("The changes are saved.")
        expect(self.page.get_by_label("Headers optional")).to_have_value("")

    def find_failed_delivery(self):
        """Filters the list, goes back, and opens the failed delivery."""
        self.respond(500, b"KeyError: 'credits'")
        put_job(self.service, self.api, "second", credits_charged={"N": "6"})
        (failed,) = wait_for_status(self.api, self.webhook, "failed")
        self.failed_event = failed["event_id"]
        self.page.get_by_label("Status").select_option("failed")
        expect(self.tab.rows()).to_have_count(1)
        expect(self.page).to_have_url(re.compile(r"\?status=failed$"))
        self.page.get_by_label("Event").select_option("job.failed")
        expect(self.page.get_by_text("No delivery matches these filters.")).to_be_visible()
        self.page.go_back()
        expect(self.tab.rows()).to_have_count(1)
        expect(self.tab.rows()).to_contain_text(["error status"])
        self.tab.follow(f"job.completed {failed['task_id']}")
        expect(self.tab.heading("job.completed")).to_be_focused()

    def attempt(self, number):
        return self.page.get_by_role("listitem").filter(has_text=f"Attempt {number}")

    def inspect_failed_delivery(self):
        """The newest attempt is open, the older one is closed, and the payload has two forms."""
        delivery = self.api.get_delivery(self.webhook, self.failed_event).data
        first, second = delivery["attempts"]
        newest, older = self.attempt(second["number"]), self.attempt(first["number"])
        expect(newest).to_contain_text(second["detail"])
        expect(newest.get_by_label("Timings", exact=True)).to_contain_text("Wait for the response")
        expect(self.tab.text_block("Response, status 500", newest)).to_have_text(
            "KeyError: 'credits'"
        )
        for name in ("X-Nano-Signature", "webhook-signature"):
            expect(newest.get_by_role("row", name=name)).to_contain_text(
                second["request_headers"][name]
            )
        expect(newest.get_by_role("row", name="X-Api-Key")).to_contain_text("[redacted]")
        assert "gateway:key" not in self.page.content()
        expect(older.get_by_text(first["detail"])).to_be_hidden()
        older.get_by_text(f"Attempt {first['number']}").click()
        expect(older.get_by_text(first["detail"])).to_be_visible()
        payload = self.tab.text_block("Payload")
        assert payload.inner_text() == json.dumps(
            json.loads(delivery["payload"]), indent=2, ensure_ascii=False
        )
        self.tab.press("As sent")
        expect(payload).to_have_text(delivery["payload"])
        self.tab.save_screenshot("journey-failed-delivery")

    def send_test_events(self):
        """A refused test event shows the response and the signed content.

        After a repair it is accepted.
        """
        before = len(self.receiver.requests_to("/hook"))
        self.tab.go(f"webhooks/{self.webhook}/test")
        self.page.get_by_label("Event").select_option("job.failed")
        self.tab.press("Send a test event")
        expect(self.tab.heading("The test event failed")).to_be_focused()
        expect(self.tab.main).to_contain_text("KeyError: 'credits'")
        expect(self.page.get_by_label("Timings", exact=True)).to_contain_text("Connect")
        (request,) = self.receiver.requests_to("/hook")[before:]
        assert request.json["event"] == "job.failed"
        signed = self.tab.text_block("Signed content").inner_text()
        digest = hmac.new(PLAIN_SECRET.encode(), signed.encode(), hashlib.sha256).hexdigest()
        assert request.headers["x-nano-signature"] == f"v1={digest}"
        self.tab.save_screenshot("journey-test-refused")
        self.respond(200)
        self.tab.press("Send a test event")
        expect(self.tab.heading("The test event was accepted")).to_be_focused()

    def retry_failed_delivery(self):
        self.tab.go(f"webhooks/{self.webhook}/deliveries/{self.failed_event}")
        self.tab.press("Retry now")
        self.tab.expect_status("Attempt 3 was accepted with status 200.")
        expect(self.attempt(3)).to_contain_text("Accepted with status 200.")
        assert self.api.get_delivery(self.webhook, self.failed_event).data["status"] == "delivered"
        verify_signatures(self.receiver.requests_to("/hook"), PLAIN_SECRET)

    def replay_outage(self):
        self.respond(503)
        for number in range(3):
            put_job(self.service, self.api, f"lost-{number}")
        wait_for_status(self.api, self.webhook, "failed", 3)
        self.respond(200)
        self.tab.go(f"webhooks/{self.webhook}/replay")
        self.tab.press("hour")
        self.tab.press("Start the replay")
        expect(self.page.get_by_role("progressbar", name="Sent")).to_be_visible()
        self.tab.expect_status("The replay is done: 3 delivered, 0 failed.")
        for fact in ("Found3", "Sent3", "Delivered3", "Failed0"):
            self.tab.expect_fact(fact)
        wait_for_status(self.api, self.webhook, "delivered", 5)
        self.tab.save_screenshot("journey-replay")

    def rotate_secret(self):
        """The new secret is shown once, in a dialog that only its button closes.

        Until the grace time ends, a server with either secret verifies a request.
        """
        self.tab.follow("Settings")
        self.page.get_by_label("Hours until").fill("999")
        self.tab.press("Rotate the secret")
        expect(self.page.get_by_role("alert")).to_contain_text("grace_hours")
        self.page.get_by_label("Hours until").fill("1")
        self.tab.press("Rotate the secret")
        secret = self.page.get_by_role("dialog").get_by_role("region").inner_text()
        assert secret.startswith("whsec_")
        self.page.keyboard.press("Escape")
        expect(self.page.get_by_role("dialog")).to_be_visible()
        self.tab.press("Copy: New signing secret")
        self.tab.expect_status("Copied.")
        assert self.page.evaluate("navigator.clipboard.readText()") == secret
        self.tab.press("I have copied it")
        expect(self.page.locator("dialog")).to_have_count(0)
        assert secret not in self.page.content()
        put_job(self.service, self.api, "rotated")
        wait_for_status(self.api, self.webhook, "delivered", 6)
        requests = self.receiver.requests_to("/hook")[-1:]
        verify_signatures(requests, PLAIN_SECRET)
        standardwebhooks.Webhook(secret).verify(requests[0].body, requests[0].headers)

    def disable_and_enable(self):
        """Disables the webhook, enables it, and disables it again."""
        for state in ("disabled", "enabled", "disabled"):
            if state == "disabled":
                self.tab.press("Disable…")
                self.page.get_by_role("dialog").get_by_role(
                    "button", name="Disable", exact=True
                ).click()
            else:
                self.page.get_by_role("button", name="Enable").last.click()
            self.tab.expect_status(f"The webhook is {state}.")
            is_disabled = state == "disabled"
            expect(self.page.get_by_text("This webhook is disabled.")).to_have_count(
                1 if is_disabled else 0
            )
            assert self.api.get_status(self.webhook) == ("disabled" if is_disabled else "active")

    def delete(self):
        """Cancels, then deletes the webhook. Its deliveries stay readable."""
        self.tab.press("Delete…")
        self.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        assert len(self.api.list_webhooks().data) == 1
        self.tab.press("Delete…")
        self.tab.press("Delete the webhook")
        self.tab.expect_status(f"Webhook {self.webhook} was deleted.")
        expect(self.tab.heading("No webhooks yet")).to_be_visible()
        assert self.api.list_webhooks().data == []
        self.tab.go(f"webhooks/{self.webhook}")
        expect(self.page.get_by_text("This webhook was deleted.")).to_be_visible()
        expect(self.tab.rows()).to_have_count(6)

    def leave(self):
        self.tab.press("Sign out")
        expect(self.page.get_by_label("API key")).to_be_focused()
        self.page.go_back()
        expect(self.page.get_by_label("API key")).to_be_visible()
        assert self.page.evaluate("sessionStorage.length") == 0


def test_customer_registers_diagnoses_and_leaves(quick_service, visit, receiver):
    """The main journey of a customer, from the first webhook to forgetting the key."""
    api = quick_service.create_account()
    with visit(api, key="", expected=[CONSOLE_ERROR.format(400), CONSOLE_ERROR.format(404)]) as tab:
        expect(tab.page).to_have_title("API key · Webhooks")
        tab.enter_key(api.key)
        journey = Journey(quick_service, api, receiver, tab)
        journey.register()
        journey.see_first_delivery()
        journey.find_failed_delivery()
        journey.inspect_failed_delivery()
        journey.send_test_events()
        journey.retry_failed_delivery()
        journey.replay_outage()
        journey.rotate_secret()
        journey.change_headers()
        journey.disable_and_enable()
        journey.delete()
        journey.leave()


def test_invalid_key_shows_api_error(service, visit, api):
    """The alert has the message, the code and the request id.

    A reload of the tab keeps a valid key.
    """
    with visit(api, key="", expected=[CONSOLE_ERROR.format(401)]) as tab:
        tab.enter_key("sk-wrong")
        alert = tab.page.get_by_role("alert")
        expect(alert).to_contain_text("Invalid or missing API key")
        expect(alert).to_contain_text("401 unauthorized")
        expect(alert).to_contain_text(re.compile(r"request id \S{8,}"))
        expect(tab.page.get_by_label("API key")).to_be_focused()
        tab.enter_key("sk-schlüssel")
        expect(alert).to_contain_text("letters and digits")
        tab.enter_key(api.key)
        expect(tab.heading("No webhooks yet")).to_be_visible()
        tab.page.reload()
        expect(tab.heading("No webhooks yet")).to_be_visible()


def test_api_error_appears_at_its_field(service, visit, api, receiver):
    """An error marks and focuses the field that it names. Other errors appear in an alert."""
    expected = [CONSOLE_ERROR.format(status) for status in (400, 404, 409)]
    with visit(api, expected=expected) as tab:
        tab.go("new")
        url = tab.page.get_by_label("Endpoint URL")
        url.fill("ftp://example.com/")
        tab.press("Add the webhook")
        expect(url).to_be_focused()
        expect(url).to_have_attribute("aria-invalid", "true")
        rejected = api.create({"url": "ftp://example.com/", "events": ["job.failed"]})
        message = rejected.assert_error(400, "invalid_request").message
        expect(url).to_have_accessible_description(message.removeprefix("url: "))
        expect(tab.page.get_by_role("alert")).to_contain_text(message)
        url.fill(f"{receiver.url}/hook")
        for event in ("job.completed", "job.failed"):
            tab.page.get_by_label(event).uncheck()
        tab.press("Add the webhook")
        expect(tab.page.get_by_role("group", name="Events")).to_have_attribute(
            "aria-invalid", "true"
        )
        expect(url).not_to_have_attribute("aria-invalid", "true")
        assert api.list_webhooks().data == []

        tab.go("webhooks/7")
        expect(tab.page.get_by_role("alert")).to_contain_text("404 not_found")
        tab.go("nowhere")
        expect(tab.heading("Page not found")).to_be_focused()

        # A delivery cannot be retried while its webhook is disabled.
        webhook = api.subscribe(f"{receiver.url}/hook")
        put_job(service, api, "job")
        event = api.wait_for_delivery(webhook, lambda row: row["status"] == "delivered")["event_id"]
        tab.go(f"webhooks/{webhook}/deliveries/{event}")
        expect(tab.heading("job.completed")).to_be_visible()
        api.update(webhook, status="disabled")
        tab.press("Retry now")
        expect(tab.page.get_by_role("alert")).to_contain_text("409 conflict")


def test_rate_limit_and_outage_are_shown(start, visit):
    """The alert says when to try again, or that the service is unreachable."""
    service = start("--in-memory", env={"RATE_LIMIT_PER_DAY": "1"})
    expected = [CONSOLE_ERROR.format(429), "Failed to load resource: net::ERR_CONNECTION"]
    with visit(service.api, key="", expected=expected) as tab:
        # The first request checks the key. The second one, for the list, exceeds the limit.
        tab.enter_key(service.api.key)
        expect(tab.heading("Something went wrong")).to_be_focused()
        alert = tab.page.get_by_role("alert")
        expect(alert).to_contain_text("429 rate_limited")
        expect(alert).to_contain_text(
            re.compile(r"try again in \d+ (second|minute|hour)s? · request id \S+")
        )
        service.kill()
        tab.press("Try again")
        expect(alert).to_contain_text("The service could not be reached")


def test_running_replay_is_cancelled(quick_service, visit, receiver):
    """A replay has a page of its own, which survives a reload, and can be cancelled there."""
    api = quick_service.create_account()
    receiver.respond("/hook", respond_with_text(500))
    webhook = api.subscribe(f"{receiver.url}/hook")
    for number in range(40):
        put_job(quick_service, api, number)
    wait_for_status(api, webhook, "failed", 40)
    receiver.hang("/hook")
    with visit(api) as tab:
        tab.go(f"webhooks/{webhook}/replay")
        tab.press("24 hours")
        tab.page.get_by_label("Failed deliveries").check()
        tab.press("Start the replay")
        expect(tab.page.get_by_text("running", exact=True)).to_be_visible()
        tab.page.reload()
        tab.press("Cancel the replay")
        expect(tab.page.get_by_text("cancelled", exact=True)).to_be_visible()
        expect(tab.status).to_contain_text("The replay is cancelled")
        expect(tab.heading("Replay")).to_be_focused()


def test_hostile_text_is_never_executed(quick_service, visit, receiver):
    """Texts from receivers, jobs and addresses appear as text on every view."""
    api = quick_service.create_account()
    path = "/<img/src=x/onerror=alert(1)></script><script>alert(2)</script>"
    receiver.respond(
        urllib.parse.quote(path, safe="/()="), respond_with_text(500, HOSTILE.encode())
    )
    webhook = api.create(
        {"url": receiver.url + path, "events": ["job.completed"], "description": HOSTILE}
    )
    assert webhook.status == 201, webhook.text
    webhook = webhook.data["id"]
    task = f"{api.account}-{HOSTILE}"
    quick_service.put_job(task, api.account, data={"M": {HOSTILE: {"S": HOSTILE}}})
    (failed,) = wait_for_status(api, webhook, "failed")
    with visit(api, expected=[CONSOLE_ERROR.format(400)]) as tab:
        expect(tab.rows().get_by_role("link")).to_have_text(receiver.url + path)
        expect(tab.rows()).to_contain_text("failing")
        tab.go(f"webhooks/{webhook}")
        expect(tab.heading(receiver.url + path)).to_be_focused()
        expect(tab.main.get_by_role("definition").first).to_have_text(HOSTILE)
        expect(tab.rows()).to_contain_text(task)
        tab.go(f"webhooks/{webhook}/deliveries/{failed['event_id']}")
        expect(tab.text_block("Response, status 500")).to_have_text(HOSTILE)
        expect(tab.text_block("Payload")).to_contain_text(json.dumps(HOSTILE))
        tab.save_screenshot("hostile-text")
        tab.go(f"webhooks/{webhook}/settings")
        expect(tab.page.get_by_label("Description")).to_have_value(HOSTILE)
        tab.go(f"webhooks/{webhook}/test")
        tab.press("Send a test event")
        expect(tab.text_block("Response, status 500")).to_have_text(HOSTILE)
        # The page does not insert a text from its address as markup.
        tab.go(f"webhooks/{webhook}?status={HOSTILE}")
        expect(tab.main).to_contain_text("status: expected")
        assert tab.main.locator("img, script, b").count() == 0


def test_long_list_loads_more_rows(quick_service, visit, receiver):
    """A list grows by pages, keeps the focus, and the browser's back and forward buttons work."""
    api = quick_service.create_account()
    webhook = api.subscribe(f"{receiver.url}/hook")
    for number in range(57):
        put_job(quick_service, api, f"{number:02}")
    wait_for_status(api, webhook, "delivered", 57)
    with visit(api) as tab:
        tab.follow(f"{receiver.url}/hook")
        expect(tab.rows()).to_have_count(50)
        tab.press("Load more")
        tab.expect_status("57 deliveries shown.")
        expect(tab.rows()).to_have_count(57)
        expect(tab.page.get_by_role("button", name="Load more")).to_be_hidden()
        expect(tab.rows().nth(50).get_by_role("link")).to_be_focused()
        shown = (
            tab.rows()
            .get_by_role("link")
            .evaluate_all("links => links.map((link) => link.ariaLabel)")
        )
        assert shown == [f"job.completed {row['task_id']}" for row in api.list_deliveries(webhook)]
        tab.rows().first.get_by_role("link").click()
        expect(tab.heading("job.completed")).to_be_focused()
        tab.page.go_back()
        expect(tab.heading(f"{receiver.url}/hook")).to_be_focused()
        tab.page.go_back()
        expect(tab.heading("Webhooks")).to_be_focused()
        tab.page.go_forward()
        expect(tab.heading(f"{receiver.url}/hook")).to_be_focused()


def test_late_response_is_discarded(service, visit, api, receiver):
    """Of two responses for a list the page shows the one to the newer request."""
    webhook = api.subscribe(f"{receiver.url}/hook")
    put_job(service, api, "job")
    wait_for_status(api, webhook, "delivered")
    with visit(api) as tab:
        held = []
        tab.go(f"webhooks/{webhook}")
        expect(tab.rows()).to_have_count(1)
        tab.page.route(
            re.compile(r"deliveries\?status=delivered$"), lambda route: held.append(route)
        )
        tab.page.get_by_label("Status").select_option("delivered")
        tab.page.get_by_label("Event").select_option("job.failed")
        nothing = tab.page.get_by_text("No delivery matches these filters.")
        expect(nothing).to_be_visible()
        with tab.page.expect_response(held[0].request.url) as late:
            held[0].continue_()
        assert late.value.json()["data"]
        # After two frames the page would have shown the response.
        tab.page.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        expect(nothing).to_be_visible()
        expect(tab.rows()).to_have_count(0)


def test_keyboard_alone_registers_and_deletes(service, visit, api, receiver):
    with visit(api, key="") as tab:
        keyboard = tab.page.keyboard

        def tab_to(target, step="Tab"):
            for _ in range(30):
                if target.evaluate("node => node === document.activeElement"):
                    return
                keyboard.press(step)
            raise AssertionError(f"{step} does not reach {target}")

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
        (webhook,) = api.list_webhooks().data
        assert webhook["events"] == ["job.completed"]
        put_job(service, api, "job")
        verify_signatures(receiver.wait_for("/hook"), secret)

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
        assert api.list_webhooks().data == []


@pytest.fixture(scope="module")
def populated_portal(quick_service):
    """An account with items for every view, and the addresses and titles of the views."""
    receiver = Receiver()
    api = quick_service.create_account()
    secret = {
        "secret_key": PLAIN_SECRET,
        "description": "Renders for the shop, billed to the northern team",
        "headers": {"X-Api-Key": "gateway key", "CF-Access-Client-Secret": "client secret"},
    }
    events = ["job.completed", "job.failed"]
    main = api.create({"url": f"{receiver.url}/hooks/renders", "events": events, **secret}).data[
        "id"
    ]
    api.subscribe(f"{receiver.url}/ok")
    disabled = api.subscribe(f"{receiver.url}/{'a-long-path/' * 12}")
    api.update(disabled, status="disabled")
    put_job(
        quick_service,
        api,
        "first",
        url={"S": "https://cdn.example.com/image.png"},
        credits_charged={"N": "6"},
    )
    wait_for_status(api, main, "delivered")
    receiver.respond(
        "/hooks/renders",
        respond_with_text(500, b"Traceback (most recent call last):\n  KeyError: 'credits'\n"),
    )
    for number in range(4):
        put_job(
            quick_service,
            api,
            f"render-{number}",
            "failed" if number == 2 else "completed",
            credits_charged={"N": "6"},
        )
    event = wait_for_status(api, main, "failed", 4)[0]["event_id"]
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


@pytest.mark.parametrize(
    "scheme, viewport", [("light", DESKTOP), ("dark", DESKTOP), ("light", PHONE), ("dark", PHONE)]
)
def test_every_view_is_accessible(populated_portal, visit, scheme, viewport):
    """Each view fits the width of the screen, and axe finds no serious violation in either color
    scheme.
    """
    api, views = populated_portal
    axe = (Path(os.environ["NANO_NODE"]) / "node_modules/axe-core/axe.min.js").read_text()
    violations = []

    def check_view(name):
        tab.save_screenshot(f"{name}-{scheme}-{viewport['width']}")
        if tab.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            violations.append(f"{name}: wider than {viewport['width']} px")
        for violation in tab.page.evaluate("async () => (await axe.run()).violations"):
            nodes = [node["html"][:200] for node in violation["nodes"]]
            if violation["impact"] in ("serious", "critical"):
                violations.append(f"{name}: {violation['id']}: {violation['help']}: {nodes}")

    with visit(api, key="", color_scheme=scheme, viewport=viewport) as tab:
        # The Content Security Policy forbids script elements. It does not apply to code from the
        # debugger.
        tab.page.evaluate(f"() => {{ {axe} }}")
        check_view("key")
        tab.enter_key(api.key)
        for name, (path, title) in views.items():
            tab.go(path)
            expect(tab.page).to_have_title(title)
            if name == "list":
                expect(tab.rows()).to_have_count(3)
                expect(tab.main).not_to_contain_text("…")
            if name == "test":
                tab.press("Send a test event")
                expect(tab.heading("The test event failed")).to_be_focused()
            check_view(name)
        tab.go(views["settings"][0])
        expect(tab.page).to_have_title(views["settings"][1])
        tab.press("Delete…")
        expect(tab.page.get_by_role("dialog")).to_be_visible()
        check_view("dialog")
    assert not violations, "\n".join(violations)
