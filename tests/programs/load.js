// Workers, a child with a channel, hashing in libuv's threads, timers, and connections over a unix socket, until there is
// a file `stop`.

const { Worker, isMainThread, parentPort } = require("worker_threads");
const { fork } = require("child_process");
const crypto = require("crypto");
const fs = require("fs");
const net = require("net");

if (!isMainThread) {
    parentPort.on("message", (n) => parentPort.postMessage(n * 2));
} else if (process.send) {
    process.on("message", (n) => process.send(n + 1));
} else {
    main();
}

function main() {
    const counts = { worker: 0, child: 0, hash: 0, echo: 0, tick: 0 };
    const fail = (what) => {
        console.log("wrong: " + what);
        process.exit(3);
    };
    const worker = new Worker(__filename);
    worker.on("message", (n) => {
        if (n !== counts.worker * 2) fail("worker");
        worker.postMessage(++counts.worker);
    });
    worker.postMessage(0);
    const child = fork(__filename);
    child.on("message", (n) => {
        if (n !== counts.child + 1) fail("child");
        child.send(++counts.child);
    });
    child.send(0);
    const wanted = crypto.pbkdf2Sync("secret", "salt", 200, 32, "sha256").toString("hex");
    const hash = () =>
        crypto.pbkdf2("secret", "salt", 200, 32, "sha256", (error, key) => {
            if (error || key.toString("hex") !== wanted) fail("hash");
            counts.hash++;
            setImmediate(hash);
        });
    hash();
    const timer = setInterval(() => counts.tick++, 5);
    const server = net.createServer((socket) => socket.on("data", (data) => socket.write(data)));
    server.listen("echo", () => {
        const client = net.connect("echo");
        let waiting = "";
        const next = () => client.write((waiting = "message " + counts.echo + "\n"));
        let got = "";
        client.on("data", (data) => {
            got += data;
            if (!got.endsWith("\n")) return;
            if (got !== waiting) fail("echo " + got);
            got = "";
            counts.echo++;
            setTimeout(next, 1);
        });
        next();
        fs.writeFileSync("ready", "");
    });
    const end = setInterval(() => {
        if (!fs.existsSync("stop") || Object.values(counts).some((count) => count < 10)) return;
        console.log("whole true");
        process.exit(0);
    }, 10);
    void timer, end;
}
