// Verifies webhooks as a receiver in Node does. Reads lines of JSON, {headers, body, secret}, with header names in
// lower case; prints a line for each: {documented, fixed_point, standard}, each true or what is wrong.
import { createHmac } from "node:crypto";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const require = createRequire(join(process.env.NANO_NODE, "package.json"));
const { Webhook } = require("standardwebhooks");

// The verifier of the public documentation, to the letter: it signs what JSON.stringify makes of what it parsed.
function documented({ headers, body, secret }) {
  const parsed = JSON.parse(body);
  const message = `${headers["x-nano-timestamp"]}.${JSON.stringify(parsed)}`;
  const expected = "v1=" + createHmac("sha256", Buffer.from(secret, "utf8")).update(message).digest("hex");
  return expected === headers["x-nano-signature"] || `expected ${expected}`;
}

function fixedPoint({ body }) {
  const again = JSON.stringify(JSON.parse(body));
  return again === body || `JSON.stringify gives ${again}`;
}

// A secret that is no `whsec_…` is the key itself, as its UTF-8 bytes.
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

// The lines of JSON end in \n alone: U+2028, which readline would split at too, is escaped by the sender.
for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const input = JSON.parse(line);
  console.log(
    JSON.stringify({
      documented: verdict(documented, input),
      fixed_point: verdict(fixedPoint, input),
      standard: verdict(standard, input),
    }),
  );
}
