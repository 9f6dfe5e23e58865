// BullMQ with jobs that do nothing: enqueues jobs, starts one worker, prints jobs per second.
// Usage: node bullmq_noop.mjs COUNT REDIS_PORT
import { Queue, Worker } from "bullmq";

const [count, port] = process.argv.slice(2).map(Number);
const connection = { host: "127.0.0.1", port, maxRetriesPerRequest: null };
const queue = new Queue("noop", { connection });
for (let added = 0; added < count; added += 1000) {
  const jobs = Array.from({ length: Math.min(1000, count - added) }, () => ({ name: "noop", data: {} }));
  await queue.addBulk(jobs);
}
let done = 0;
let started;
let before;
await new Promise((resolve) => {
  const worker = new Worker("noop", async () => {}, { connection, concurrency: 64 });
  worker.on("completed", () => {
    done += 1;
    if (started === undefined && done >= count / 20) {
      started = performance.now();
      before = done;
    }
    if (done === count) resolve();
  });
});
console.log((count - before) / ((performance.now() - started) / 1000));
process.exit(0);
