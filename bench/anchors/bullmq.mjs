// BullMQ, enqueue to start: `work PORT` prints the number of each job and when it started; `add PORT COUNT RATE` prints
// when each was about to be added. Both in nanoseconds of the monotonic clock, which processes share.
import { createRequire } from "node:module";

const require = createRequire(`${process.cwd()}/package.json`);
const { Queue, Worker } = require("bullmq");
const [mode, port, count, rate] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const connection = { host: "127.0.0.1", port, maxRetriesPerRequest: null };

if (mode === "work") {
  const worker = new Worker(
    "anchor",
    async (job) => {
      process.stdout.write(`${job.data.number} ${process.hrtime.bigint()}\n`);
    },
    { connection, concurrency: 2 },
  );
  await worker.waitUntilReady();
  process.stdout.write("ready 0\n");
} else {
  const queue = new Queue("anchor", { connection });
  await queue.waitUntilReady();
  const began = performance.now();
  const at = [];
  for (let number = 0; number < count; number++) {
    const pause = began + (number * 1000) / rate - performance.now();
    if (pause > 0) await new Promise((resolve) => setTimeout(resolve, pause));
    at.push(String(process.hrtime.bigint()));
    await queue.add("noop", { number });
  }
  console.log(JSON.stringify(at));
  process.exit(0);
}
