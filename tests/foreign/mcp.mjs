// An agent's side of the Model Context Protocol, by its TypeScript library: what it is given is told on stdout.
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(path.join(process.env.NODE_PATH, "x.js"));
const load = (name) => import(pathToFileURL(require.resolve(`@modelcontextprotocol/sdk/client/${name}.js`)));
const { Client } = await load("index");
const { StdioClientTransport } = await load("stdio");

const { command, calls } = JSON.parse(process.argv[2]);
const transport = new StdioClientTransport({ command: command[0], args: command.slice(1), env: process.env });
const client = new Client({ name: "foreign", version: "1" });
await client.connect(transport);
const told = {
  server: client.getServerVersion(),
  instructions: client.getInstructions(),
  tools: (await client.listTools()).tools,
  results: [],
};
for (const [name, args] of calls) told.results.push(await client.callTool({ name, arguments: args }));
await client.close();
console.log(JSON.stringify(told));
