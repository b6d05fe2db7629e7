// A second implementation of the signed handshake, of JSON.stringify and of toFixed: JavaScript's own.
// Written from the description in netd/wire/handshake.py. stdin: a JSON list of questions; stdout: the answers.

"use strict";
const crypto = require("node:crypto");

function negentropy(der) {
  const counts = new Map();
  let sum = 0;
  for (const byte of der) {
    counts.set(byte, (counts.get(byte) || 0) + 1);
    sum += byte;
  }
  let entropy = 0;
  for (const count of counts.values()) entropy -= (count / der.length) * Math.log2(count / der.length);
  const index = der[0] / (sum || 1) / Math.max(entropy, 1e-6);
  return Math.min(Math.max(index, 0), 1);
}

function negentropicHash(der, index) {
  const salt = Math.floor(Math.min(Math.max(index, 0), 1) * 255);
  const hash = crypto.createHash("sha256");
  hash.update(der);
  hash.update(Buffer.from(der.map((byte) => byte ^ salt)));
  hash.update(index.toFixed(6));
  return hash.digest("hex");
}

function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  const out = {};
  for (const key of Object.keys(value).sort()) {
    Object.defineProperty(out, key, { value: sorted(value[key]), enumerable: true });
  }
  return out;
}

function spki(key) {
  return crypto.createPublicKey(key).export({ format: "der", type: "spki" });
}

const answers = {
  // {pkcs8, version, ts, nonce, tags, form} -> the text of a handshake; `form` is what was signed
  make({ pkcs8, version, ts, nonce, tags, form, more }) {
    const key = crypto.createPrivateKey({ key: Buffer.from(pkcs8, "base64"), format: "der", type: "pkcs8" });
    const der = spki(key);
    const nIndex = negentropy(der);
    const unsigned = {
      type: "handshake", version, ts, nonce,
      publicKey: der.toString("base64"), negHash: negentropicHash(der, nIndex), nIndex, tags, ...more,
    };
    const text = JSON.stringify(form === "sorted" ? sorted(unsigned) : unsigned);
    const signature = crypto.sign(null, Buffer.from(text), key).toString("base64");
    return JSON.stringify({ ...unsigned, signature });
  },
  // a handshake's text -> whether its signature is good in each form, and whether its index and hash are
  check({ text }) {
    const { signature, ...unsigned } = JSON.parse(text);
    const der = Buffer.from(unsigned.publicKey, "base64");
    const key = crypto.createPublicKey({ key: der, format: "der", type: "spki" });
    const good = (value) =>
      crypto.verify(null, Buffer.from(JSON.stringify(value)), key, Buffer.from(signature, "base64"));
    return {
      received: good(unsigned), sorted: good(sorted(unsigned)),
      index: unsigned.nIndex === negentropy(der), hash: unsigned.negHash === negentropicHash(der, negentropy(der)),
    };
  },
  // JSON text -> what JavaScript makes of it, in both forms
  stringify({ text }) {
    const value = JSON.parse(text);
    return [JSON.stringify(value), JSON.stringify(sorted(value))];
  },
  hash({ der, index }) {
    return negentropicHash(Buffer.from(der, "base64"), index);
  },
  index({ der }) {
    return negentropy(Buffer.from(der, "base64"));
  },
};

const questions = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(questions.map((question) => answers[question.ask](question))));
