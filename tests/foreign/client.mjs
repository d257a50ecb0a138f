// A client that is not ours: all it knows is docs/protocol.md and the npm package `nats` (2.x).
//
//     node client.mjs '{"server": "…/server.json", "clip": "clip.ts", "seed": 7, "asks": ["…"], "watched": "…"}'
//
// It sends media in pieces of random size, follows what is answered meanwhile, and loses its connections again and
// again. What it saw is one JSON object on stdout; test_npm_client.py judges it.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { connect as dial, createServer } from "node:net";
import { setTimeout as pause } from "node:timers/promises";

const nats = createRequire(import.meta.url)("nats"); // an `import` would not look into NODE_PATH
const json = nats.JSONCodec();
const STREAM = "station";
const MAX_PIECE_BYTES = 48 * 1024;
const AWAY = new Set(["TIMEOUT", "503", "DISCONNECT", "CONNECTION_CLOSED"]); // what the package calls it

/** A connection that can be cut as by a broken cable: a relay stands between this client and the server. */
class Link {
  static numCuts = 0;

  static async open(url) {
    const link = new Link();
    const { hostname, port, username } = new URL(url);
    link.sockets = new Set();
    link.relay = createServer((near) => link.#join(near, dial(Number(port), hostname)));
    await new Promise((resolve) => link.relay.listen(0, "127.0.0.1", resolve));
    link.nc = await nats.connect({
      servers: `127.0.0.1:${link.relay.address().port}`,
      token: username,
      maxReconnectAttempts: -1,
      reconnectTimeWait: 50,
    });
    link.#watch();
    return link;
  }

  /**
   * As the package's, but it waits for a connection, and fails at once when that breaks. The package forgets what it is
   * given while there is none, and says so, as of what was under way, only when the timeout is over.
   */
  async request(subject, body, options) {
    await this.up;
    return Promise.race([this.nc.request(subject, body, options), this.broken]);
  }

  async #watch() {
    let tell;
    let lift = () => {};
    const renew = () => {
      this.broken = new Promise((_, reject) => (tell = reject));
      this.broken.catch(() => {}); // there may be nobody to tell
    };
    renew();
    for await (const { type } of this.nc.status()) {
      if (type === "reconnect") lift();
      if (type !== "disconnect") continue;
      this.up = new Promise((resolve) => (lift = resolve));
      tell(Object.assign(new Error("the connection broke"), { code: "DISCONNECT" }));
      renew();
    }
  }

  #join(near, far) {
    for (const [socket, other] of [[near, far], [far, near]]) {
      this.sockets.add(socket);
      socket.on("error", () => {}).on("close", () => (this.sockets.delete(socket), other.destroy()));
    }
    near.pipe(far);
    far.on("data", (bytes) => (this.isDeaf ? this.#sever() : near.write(bytes)));
  }

  #sever() {
    this.isDeaf = false;
    for (const socket of this.sockets) socket.destroy();
  }

  /** Breaks the connection: at once, or where the next reply would come. Returns when there is another. */
  async cut(where = "now") {
    const events = this.nc.status();
    if (where === "reply") this.isDeaf = true;
    else this.#sever();
    for await (const { type } of events) if (type === "reconnect") break;
    Link.numCuts += 1;
  }

  async close() {
    await this.nc.close();
    this.relay.close();
  }
}

async function ask(link, service, request, timeout = 20_000) {
  const reply = await link.request(`penstock.${service}`, json.encode(request), { timeout });
  const refusal = refused(reply);
  if (refusal) throw Object.assign(new Error(refusal.text), refusal);
  return json.decode(reply.data);
}

function refused(reply) {
  const code = reply.headers?.get("Nats-Service-Error-Code");
  return code ? { code, text: reply.headers.get("Nats-Service-Error"), bytes: reply.data.length } : null;
}

/** The refusal of a request that is wrong; null where it was not refused. */
async function refusalOf(link, service, body) {
  return refused(await link.request(`penstock.${service}`, Buffer.from(body), { timeout: 20_000 }));
}

/** Repeats what is refused or fails because nobody is there, until it gives something. */
async function until(look) {
  for (;;) {
    const found = await look().catch((error) => {
      if (!AWAY.has(error.code)) throw error;
    });
    if (found) return found;
    await pause(100);
  }
}

/** The reply to one piece; an empty one is the end. */
async function sendPiece(link, stream, piece, fields, timeout = piece.length ? 60_000 : 600_000) {
  const said = nats.headers();
  for (const [name, value] of Object.entries(fields)) said.set(name, String(value));
  return json.decode((await link.request(`penstock.ingest.${stream}`, piece, { timeout, headers: said })).data);
}

/** Why a piece that is wrong was not taken. */
async function errorOf(link, stream, piece, fields) {
  return sendPiece(link, stream, piece, fields, 20_000).then(
    ({ error }) => error ?? null,
    ({ code }) => `no reply: ${code}`,
  );
}

/** Sends pieces in order, each until there is a reply; some get lost on the way, of some the reply. */
async function send(link, pieces) {
  const replies = [];
  for (const [number, { at, bytes }] of pieces.entries()) {
    const taken = until(() => sendPiece(link, STREAM, bytes, { "Penstock-Offset": at }));
    if (number % 10 === 4) await link.cut();
    if (number % 10 === 9 || !bytes.length) await link.cut("reply");
    replies.push(await taken);
    if (bytes.length && replies.at(-1).error) throw new Error(replies.at(-1).error);
  }
  return replies;
}

/** The record of a kept subject at a sequence or behind it; null: there is none yet. */
async function next(link, kept, subject, seq) {
  const wanted = json.encode({ seq, next_by_subj: subject });
  const reply = await link.request(`$JS.API.DIRECT.GET.${kept}`, wanted, { timeout: 5_000 });
  if (reply.headers.code === 404) return null;
  if (reply.headers.code) throw new Error(`${reply.headers.code} ${reply.headers.description}`);
  const field = (name) => reply.headers.get(name);
  return { seq: Number(field("Nats-Sequence")), subject: field("Nats-Subject"), record: json.decode(reply.data) };
}

/** The answers of a job behind a sequence, each once, until the job has ended; whatever happens to the connection. */
async function* answers(link, job, after) {
  const subject = `penstock.answers.${job}.*`;
  let wake = () => {};
  const hints = link.nc.subscribe(subject, { callback: () => wake() });
  try {
    for (let seq = after; ; ) {
      const hint = new Promise((resolve) => (wake = resolve));
      try {
        const { state } = await ask(link, "jobs.show", { job });
        for (let found; (found = await next(link, "PENSTOCK_ANSWERS", subject, seq + 1)); seq = found.seq) yield found;
        if (state !== "running") return;
      } catch (error) {
        if (!AWAY.has(error.code)) throw error;
      }
      await Promise.race([hint, pause(2_000)]);
    }
  } finally {
    hints.unsubscribe();
  }
}

/** Follows a job to its end: cut off after each answer, and gone for good after each third. */
async function followBadly(url, job) {
  const seen = [];
  for (let ended = false; !ended; ) {
    const link = await Link.open(url);
    ended = true;
    const cuts = [];
    for await (const found of answers(link, job, seen.at(-1)?.seq ?? 0)) {
      seen.push(found);
      if (seen.length % 3 === 0) {
        ended = false;
        break;
      }
      cuts.push(link.cut()); // not waited for: the next request is under way when the connection breaks
    }
    await Promise.all(cuts);
    await link.close();
  }
  return seen;
}

/** All records of a subject, read by sequence. */
async function readAll(link, kept, subject) {
  const all = [];
  for (let found; (found = await next(link, kept, subject, (all.at(-1)?.seq ?? 0) + 1)); ) all.push(found);
  return all;
}

/** The same by a JetStream consumer. */
async function consumeAll(link, kept, subject, num) {
  const consumer = await link.nc.jetstream().consumers.get(kept, { filterSubjects: [subject] });
  const all = [];
  for await (const message of await consumer.fetch({ max_messages: num, expires: 10_000 }))
    all.push({ seq: message.seq, subject: message.subject, record: message.json() });
  return all;
}

/** Bytes cut anywhere, with their offsets; the last piece is empty. */
function piecesOf(bytes, seed) {
  let state = seed;
  const random = () => (state = (state * 48271) % 0x7fffffff) / 0x7fffffff; // Park and Miller's generator
  const pieces = [];
  for (let at = 0; at < bytes.length; at += pieces.at(-1).bytes.length)
    pieces.push({ at, bytes: bytes.subarray(at, at + 1 + Math.floor(random() * MAX_PIECE_BYTES)) });
  return [...pieces, { at: bytes.length, bytes: nats.Empty }];
}

async function main({ server, clip, seed, asks, watched }) {
  const { url } = JSON.parse(await readFile(server, "utf8"));
  const media = await readFile(clip);
  const control = await Link.open(url);
  const saw = {};

  saw.nodes = await until(async () => {
    const { nodes } = await ask(control, "nodes.list", {});
    return nodes.length ? nodes : null;
  });
  saw.ping = json.decode((await control.request("$SRV.PING.penstock", nats.Empty, { timeout: 5_000 })).data);

  saw.refused = {
    nowhere: await refusalOf(control, "jobs.submit", '{"stream": "nowhere", "asks": ["Who?"]}'),
    mistyped: await refusalOf(control, "jobs.submit", '{"stream": "station", "question": "Who?"}'),
    empty: await refusalOf(control, "jobs.submit", ""),
    broken: await refusalOf(control, "jobs.submit", '{"stream": '),
    accented: await refusalOf(control, "jobs.show", '{"job": "gare d\u2019été"}'),
    unknown: await refusalOf(control, "jobs.show", '{"job": "visit-43"}'),
    untranslated: await refusalOf(control, "operators.translate", '{"stream": "station"}'),
    piece: await errorOf(control, "other", media.subarray(0, 188), { "Penstock-Segment": "90" }),
  };

  await ask(control, "streams.declare", { name: STREAM, policy: "durable", segment_s: 2 });
  const speech = { capability: "transcribe", inputs: { media: "media" }, params: { language: "en" } };
  const workflow = { name: "words", stages: { words: speech } };
  saw.submitted = {
    words: await ask(control, "jobs.submit", { id: "words", stream: STREAM, workflow }),
    watch: await ask(control, "jobs.submit", { id: "watch", stream: STREAM, asks: [watched], standing: true }),
    tired: await ask(control, "jobs.submit", { id: "tired", stream: STREAM, asks: asks.slice(0, 1), standing: true }),
  };
  saw.refused.taken = await refusalOf(control, "jobs.submit", '{"id": "words", "stream": "station", "asks": ["Who?"]}');
  saw.running = (await ask(control, "jobs.list", { stream: STREAM, state: "running" })).jobs;

  const following = Promise.all(["words", "watch", "tired"].map((job) => followBadly(url, job)));
  const sender = await Link.open(url);
  const pieces = piecesOf(media, seed);
  const half = Math.floor(pieces.length / 2);
  saw.replies = await send(sender, pieces.slice(0, half));
  const [last, due, ahead] = pieces.slice(half - 1);
  saw.again = await sendPiece(sender, STREAM, last.bytes, { "Penstock-Offset": last.at });
  saw.ahead = await sendPiece(sender, STREAM, ahead.bytes, { "Penstock-Offset": ahead.at });
  saw.due = due.at;
  saw.canceled = await ask(control, "jobs.cancel", { job: "tired" });
  saw.replies.push(...(await send(sender, pieces.slice(half))));
  await sender.close();
  saw.pieces = pieces.map(({ bytes }) => bytes.length);
  saw.stream = await until(async () => {
    const [view] = (await ask(control, "streams.list", { stream: STREAM })).streams;
    return view.state === "ended" ? view : null;
  });
  saw.refused.ended = await errorOf(control, STREAM, media.subarray(0, 188), { "Penstock-Offset": media.length });

  saw.drafts = [];
  control.nc.subscribe("penstock.partials.visit.*", { callback: (_, message) => saw.drafts.push(message.json()) });
  const range = { start: "0:00", end: "0:30" };
  saw.submitted.visit = await ask(control, "jobs.submit", { id: "visit", stream: STREAM, asks, ...range });
  const visit = await followBadly(url, "visit");
  const [words, watch, tired] = await following;
  saw.followed = { words, watch, tired, visit };
  saw.canceledAgain = await ask(control, "jobs.cancel", { job: "tired" });
  saw.jobs = (await ask(control, "jobs.list", { stream: STREAM })).jobs;

  saw.stored = await readAll(control, "PENSTOCK_ANSWERS", "penstock.answers.>");
  saw.consumed = await consumeAll(control, "PENSTOCK_ANSWERS", "penstock.answers.>", saw.stored.length);
  saw.gaps = await readAll(control, "PENSTOCK_GAPS", `penstock.gaps.*.*.${STREAM}.*`);

  saw.answer = await ask(control, `ask.${STREAM}`, { question: asks[0], timeout_s: 60 }, 80_000);
  const call = { stream: STREAM, start: "0:16", end: "0:16", timeout_s: 60 };
  saw.outputs = (await ask(control, "operators.read_text", call, 80_000)).outputs;
  await control.close();
  return { ...saw, numCuts: Link.numCuts };
}

console.log(JSON.stringify(await main(JSON.parse(process.argv[2]))));
