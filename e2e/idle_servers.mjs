// HTTP servers that end idle connections in their own ways. Each argument is a server: the
// keep-alive timeout in ms, and how the server behaves:
//
// - `announces`: Node's default; a response has `Keep-Alive: timeout=…`
// - `quiet`: the same, without that header
// - `closes`: ends each connection after a response, without `Connection: close`
// - `resets`: resets a connection when its second request arrives
//
// Prints the list of ports, then a line for each response: the server's index, the `webhook-id`,
// and how many requests the connection has had.
import { createServer } from "node:http";

// Long enough for the deliveries of one batch to overlap.
const RESPONSE_DELAY_MS = 20;

const requestsBySocket = new WeakMap();

function handle(index, timeout, behavior, request, response) {
  const { socket } = request;
  const count = (requestsBySocket.get(socket) ?? 0) + 1;
  requestsBySocket.set(socket, count);
  if (behavior === "resets" && count > 1) {
    socket.resetAndDestroy();
    return;
  }
  request.resume();
  request.on("end", () => {
    setTimeout(() => {
      response.statusCode = 204;
      if (behavior !== "announces") {
        response.setHeader("Connection", "keep-alive");
      }
      // Node 20 keeps a connection for a second longer than it announces.
      response.on("finish", () => setImmediate(() => socket.setTimeout(timeout)));
      if (behavior === "closes") {
        response.on("finish", () => socket.end());
      }
      response.end();
      console.log(JSON.stringify([index, request.headers["webhook-id"], count]));
    }, RESPONSE_DELAY_MS);
  });
}

async function start(argument, index) {
  const [milliseconds, behavior] = argument.split("-");
  const timeout = Number(milliseconds);
  const server = createServer((request, response) =>
    handle(index, timeout, behavior, request, response),
  );
  server.keepAliveTimeout = timeout;
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server.address().port;
}

console.log(JSON.stringify(await Promise.all(process.argv.slice(2).map(start))));
