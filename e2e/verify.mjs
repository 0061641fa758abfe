// Verifies webhooks as a receiver in Node does. Reads lines of JSON, {headers, body, secret}, with
// header names in lower case. Prints one line for each: {documented, round_trip, standard}, each
// `true` or the error.
import { createHmac } from "node:crypto";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const require = createRequire(join(process.env.NANO_NODE, "package.json"));
const { Webhook } = require("standardwebhooks");

// The verifier of the public documentation, word for word. It parses the body and signs
// JSON.stringify of the result.
function documented({ headers, body, secret }) {
  const parsed = JSON.parse(body);
  const message = `${headers["x-nano-timestamp"]}.${JSON.stringify(parsed)}`;
  const key = Buffer.from(secret, "utf8");
  const expected = "v1=" + createHmac("sha256", key).update(message).digest("hex");
  return expected === headers["x-nano-signature"] || `expected ${expected}`;
}

function roundTrip({ body }) {
  const again = JSON.stringify(JSON.parse(body));
  return again === body || `JSON.stringify gives ${again}`;
}

// The key of a plain secret is the secret's UTF-8 bytes.
function standard({ headers, body, secret }) {
  const webhook = secret.startsWith("whsec_")
    ? new Webhook(secret)
    : new Webhook(new Uint8Array(Buffer.from(secret, "utf8")), { format: "raw" });
  webhook.verify(body, headers);
  return true;
}

function verdict(check, input) {
  try {
    return check(input);
  } catch (error) {
    return String(error);
  }
}

// Lines end with \n only. The sender escapes U+2028, at which readline would also split.
for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const input = JSON.parse(line);
  console.log(
    JSON.stringify({
      documented: verdict(documented, input),
      round_trip: verdict(roundTrip, input),
      standard: verdict(standard, input),
    }),
  );
}
