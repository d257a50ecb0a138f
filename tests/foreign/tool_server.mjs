// A server of the Model Context Protocol by its TypeScript library, on stdin and stdout: one tool, `shipping`.

import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const { Server } = require("@modelcontextprotocol/sdk/server/index.js");
const { StdioServerTransport } = require("@modelcontextprotocol/sdk/server/stdio.js");
const { CallToolRequestSchema, ListToolsRequestSchema } = require("@modelcontextprotocol/sdk/types.js");

const server = new Server({ name: "harbour", version: "1.0.0" }, { capabilities: { tools: {} } });
const takes = {
  type: "object",
  properties: { to: { type: "string", maxLength: 40 }, tonnes: { type: "integer", minimum: 1 } },
  required: ["to", "tonnes"],
  additionalProperties: false,
};

server.setRequestHandler(ListToolsRequestSchema, async () => ({
  tools: [{ name: "shipping", description: "What it costs to ship some tonnes to a harbour.", inputSchema: takes }],
}));
server.setRequestHandler(CallToolRequestSchema, async ({ params }) => {
  if (params.arguments.to !== "Porto") {
    return { isError: true, content: [{ type: "text", text: `no ship goes to ${params.arguments.to}` }] };
  }
  return { content: [{ type: "text", text: `${params.arguments.tonnes * 35} dollars to Porto` }] };
});
await server.connect(new StdioServerTransport());
