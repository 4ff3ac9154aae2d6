// Runs the program of an exported page in node. node page.mjs PAGE, with a list of calls as JSON on standard input:
// {pixels, width, height, facts} gives what `fitted` makes of RGBA, {pixels} the answer for an image of the network's
// shape. Pixels are base64. Answers go to standard output.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { gunzipSync } from "node:zlib";

const page = process.argv[2], text = readFileSync(page, "utf8");
const parts = Object.fromEntries([...text.matchAll(/ id="(\w+)">([^<]*)<\/script>/g)].map(([, id, part]) => [id, part]));
globalThis.facts = JSON.parse(parts.facts);
globalThis.document = { getElementById: (id) => ({ textContent: parts[id] }) };
// Node imports files, not blobs.
writeFileSync(`${page}.ort.mjs`, gunzipSync(Buffer.from(parts.ort, "base64")));
URL.createObjectURL = () => pathToFileURL(`${page}.ort.mjs`);
const [program] = text.match(/\/\/ The network runs in the page[^]*?(?=\nfunction show)/);
writeFileSync(`${page}.program.mjs`, `${program}\nexport { answer, fitted };`);
const { answer, fitted } = await import(pathToFileURL(`${page}.program.mjs`));

const answers = [];
for (const { pixels, width, height, facts: changed } of JSON.parse(readFileSync(0, "utf8"))) {
  const data = new Uint8Array(Buffer.from(pixels, "base64"));
  Object.assign(facts, changed);
  answers.push(width ? Buffer.from(fitted({ data, width, height })).toString("base64") : await answer(data));
}
process.stdout.write(JSON.stringify(answers));
