//! Servers in a sandbox with clients outside, which stay connected through five round trips and lose nothing.

use floe_suite::{Host, Program, enter_own_network, has, skip, until};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::chown,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

const ROUNDS: usize = 5;

fn await_server(port: u16) {
    until("the server", || TcpStream::connect(("127.0.0.1", port)).is_ok());
}

/// Waits until a server has accepted so many connections, which are all there are: who is not accepted yet stands in the way.
fn await_accepted(port: u16, count: usize) {
    until("connections", || {
        let all = fs::read_to_string("/proc/thread-self/net/tcp").expect("read");
        // Local and other address, state, queues, timer, retransmissions, user, timeout, inode.
        let of_server = all.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let of_server: Vec<_> = of_server
            .filter(|words| words[1].ends_with(&format!(":{port:04X}")))
            .collect();
        let established: Vec<_> = of_server.iter().filter(|words| words[3] == "01").collect();
        established.len() == count && established.iter().all(|words| words[9] != "0")
    });
}

/// Connects, asks once and goes, until it is told to stop; counts how often.
fn come_and_go(port: u16, served: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut server = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        server.write_all(b"there and back\n").expect("ask");
        let mut answer = [0; 15];
        server.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"\nkcab dna ereht");
        served.fetch_add(1, Ordering::Relaxed);
    }
}

fn client(command: &str) -> Child {
    let mut shell = Command::new("bash");
    let shell = shell
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    shell.spawn().expect("start a client")
}

/// What it printed.
fn end(client: Child) -> String {
    let output = client.wait_with_output().expect("its output");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).expect("text") + &errors
}

#[test]
fn redis_with_a_client_that_counts() {
    if !has("redis-server") {
        return;
    }
    let host = Host::new();
    enter_own_network();
    let port = 20_000_u16;
    let text = port.to_string();
    let program = Program::start(&host, "redis", &["redis-server", "--port", &text, "--save", ""]);
    await_server(port);
    let mut client = client(
        &format!("redis-cli -p {port} > counted; cut -d' ' -f1 counted | uniq -u | wc -l; tail -1 counted; rm counted")
            .replace("counted", &program.file("counted").display().to_string()),
    );
    let mut commands = client.stdin.take().expect("its input");
    await_accepted(port, 1);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let mut sent = 0;
        while stopped.try_recv().is_err() {
            writeln!(commands, "incr counter").expect("write");
            sent += 1;
        }
        sent
    });
    program.round_trips_with(ROUNDS, &["--tcp", "established"]);
    stop.send(()).expect("the writer is there");
    let sent: u64 = writer.join().expect("the writer");
    assert!(sent > 100, "only {sent} commands");
    assert_eq!(
        end(client),
        format!("{sent}\n{sent}\n"),
        "each number once, up to the last"
    );
    host.done(&["rm", "-f", &program.name]);
}

#[test]
fn nginx_with_wrk() {
    if !has("nginx") || !has("wrk") {
        return;
    }
    let host = Host::new();
    enter_own_network();
    let port = 21_000_u16;
    let folder = host.path("nginx");
    fs::create_dir_all(folder.join("www")).expect("a folder");
    fs::write(folder.join("www/file"), vec![b'x'; 20_000]).expect("write");
    let place = folder.display();
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {place}/{kind};"));
    let configuration = format!(
        "worker_processes 2; user root; pid {place}/pid; error_log {place}/error.log; daemon off;
        events {{ worker_connections 64; }}
        http {{ access_log off; keepalive_requests 1000000000; {}
            server {{ listen 127.0.0.1:{port}; root {place}/www; }} }}",
        temporary.concat()
    );
    fs::write(folder.join("nginx.conf"), configuration).expect("write");
    let file = folder.join("nginx.conf").display().to_string();
    let program = Program::start(&host, "nginx", &["nginx", "-c", &file]);
    await_server(port);
    let load = client(&format!(
        "wrk -t 2 -c 20 -d 8s --timeout 30s http://127.0.0.1:{port}/file"
    ));
    await_accepted(port, 20);
    program.round_trips_with(ROUNDS, &["--tcp", "established"]);
    let told = end(load);
    assert!(
        told.contains("requests in") && !told.contains("Socket errors") && !told.contains("Non-2xx"),
        "{told}"
    );
    host.done(&["rm", "-f", &program.name]);
}

/// Where the programs of postgres are, which Debian keeps out of the path.
fn postgres() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    versions
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("bin"))
        .next()
}

#[test]
fn postgres_with_a_client_inside_a_transaction() {
    let Some(bin) = postgres() else {
        skip("postgres is not installed");
        return;
    };
    let host = Host::new();
    enter_own_network();
    let port = 22_000_u16;
    let folder = host.path("postgres");
    fs::create_dir(&folder).expect("a folder");
    // It does not run as root.
    let nobody = 65534;
    chown(&folder, Some(nobody), Some(nobody)).expect("chown");
    let bin = bin.display().to_string();
    let script = "export PATH=$0:$PATH; initdb -A trust -D data > initdb.log 2>&1 && exec postgres -D data -c port=$1 \
        -c listen_addresses=127.0.0.1 -c unix_socket_directories=$PWD > server.log 2>&1";
    let text = port.to_string();
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let command = [&user[..], &["bash", "-c", script, &bin, &text]].concat();
    let program = Program::start(&host, "postgres", &command);
    let ask = format!("PGHOST=127.0.0.1 PGPORT={port} PGDATABASE=postgres PGUSER=nobody psql -v ON_ERROR_STOP=1 -qAt");
    until("postgres", || end_quietly(client(&format!("{ask} -c 'select 1'"))));
    let answers = program.folder.with_extension("answers");
    let mut client = client(&format!("{ask} > {}", answers.display()));
    let mut commands = client.stdin.take().expect("its input");
    writeln!(commands, "create table t (n int);\nbegin;\nselect 'begun';").expect("write");
    for round in 0..ROUNDS {
        writeln!(
            commands,
            "insert into t select generate_series(1, 10000);\nselect 'round {round}';"
        )
        .expect("write");
        until("the answer", || {
            fs::read_to_string(&answers).is_ok_and(|all| all.contains(&format!("round {round}")))
        });
        program.round_trips_with(1, &["--tcp", "established"]);
    }
    writeln!(
        commands,
        "select count(*) from t;\ncommit;\nselect count(*) + 1 from t;"
    )
    .expect("write");
    drop(commands);
    assert_eq!(end(client), "");
    let all = fs::read_to_string(&answers).expect("answers");
    let wanted = "begun\nround 0\nround 1\nround 2\nround 3\nround 4\n50000\n50001\n";
    assert_eq!(all, wanted);
    host.done(&["rm", "-f", &program.name]);
}

fn end_quietly(client: Child) -> bool {
    client.wait_with_output().expect("its output").status.success()
}

const ASYNCIO: &str = r"
import asyncio, sys
async def serve(reader, writer):
    while line := await reader.readline():
        await asyncio.sleep(0.001)
        writer.write(line[::-1])
        await writer.drain()
    writer.close()
async def main():
    async with await asyncio.start_server(serve, '127.0.0.1', int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
";

const ASKING: &str = r"
import asyncio, os, sys
served = []
async def ask(name):
    reader, writer = await asyncio.open_connection('127.0.0.1', int(sys.argv[1]))
    asked = 0
    while asked < 20 or not os.path.exists(sys.argv[2]):
        asked += 1
        writer.write(f'{name} {asked}\n'.encode())
        await writer.drain()
        answer = await reader.readexactly(len(f'{name} {asked}\n'))
        assert answer[::-1].decode() == f'{name} {asked}\n', answer
        if asked == 1:
            served.append(name)
            if len(served) == 50:
                open(sys.argv[2] + '-not-yet', 'w').close()
    writer.close()
    return asked
async def main():
    print(min(await asyncio.gather(*(ask(f'client-{n}') for n in range(50)))) >= 20)
asyncio.run(main())
";

#[test]
fn an_asyncio_server_with_fifty_clients() {
    let host = Host::new();
    enter_own_network();
    let port = 23_000_u16;
    let text = port.to_string();
    let program = Program::start(&host, "asyncio", &["python3", "-c", ASYNCIO, &text]);
    await_server(port);
    let stop = program.file("stop").display().to_string();
    let mut asking = Command::new("python3");
    let asking = asking
        .args(["-c", ASKING, &text, &stop])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let asking = asking.spawn().expect("start the clients");
    // While the tree is away nobody listens for new ones.
    program.await_file("stop-not-yet");
    program.round_trips_with(ROUNDS, &["--tcp", "established"]);
    program.finish();
    assert_eq!(end(asking), "True\n");
    host.done(&["rm", "-f", &program.name]);
}

#[test]
fn clients_that_come_and_go_all_the_time() {
    let host = Host::new();
    enter_own_network();
    let port = 24_000_u16;
    let text = port.to_string();
    let program = Program::start(&host, "busy", &["python3", "-c", ASYNCIO, &text]);
    await_server(port);
    let image = host.path("busy.floe").display().to_string();
    let (served, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| come_and_go(port, &served, &stop));
        }
        let save = [
            &["checkpoint", &program.name, "--leave-running", "-o", &image][..],
            // However busy the machine is.
            &["--tcp", "established", "--patience", "30"],
        ];
        for round in 1..=5 {
            // Some of them are waiting to be accepted at nearly every moment.
            until("clients", || served.load(Ordering::Relaxed) >= 50 * round);
            let saved = host.floe(&save.concat());
            if saved.status != 0 || round == 5 {
                stop.store(true, Ordering::Relaxed);
            }
            assert_eq!(saved.status, 0, "in round {round}: {}", saved.err);
        }
    });
    program.round_trips_with(1, &["--tcp", "established"]);
    host.done(&["rm", "-f", &program.name]);
}

/// Accepts only when a wait of 0.4 seconds has come to its end; and measures how long somebody sleeps meanwhile.
const SELDOM: &str = r"
import ctypes, os, select, socket, sys, threading, time
def measure():
    begin = time.monotonic()
    open('begun', 'w').close()
    # Without room for the remainder, which the kernel would tell at each stop.
    ctypes.CDLL(None).nanosleep(ctypes.byref((ctypes.c_long * 2)(4, 0)), None)
    with open('slept.new', 'w') as file:
        file.write(str(time.monotonic() - begin))
    os.rename('slept.new', 'slept')
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
listener.setblocking(False)
threading.Thread(target=measure).start()
tick, kept = select.epoll(), []
while True:
    tick.poll(0.4)
    try:
        while True:
            kept.append(listener.accept()[0])
    except BlockingIOError:
        pass
";

/// The tree is looked at some times until the connection is accepted. Neither a wait that begins anew at each look goes on
/// for ever, nor does a sleep begin anew.
#[test]
fn a_server_that_accepts_seldom() {
    let host = Host::new();
    enter_own_network();
    let port = 25_000_u16;
    let text = port.to_string();
    let program = Program::start(&host, "seldom", &["python3", "-c", SELDOM, &text]);
    program.await_file("begun");
    // No race is waited for: it is to have slept for a while.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let _client = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    program.round_trips_with(1, &["--tcp", "established", "--patience", "30"]);
    program.await_file("slept");
    let slept = fs::read_to_string(program.file("slept")).expect("read");
    let slept: f64 = slept.parse().expect("seconds");
    // Two seconds more where the first look's part of it was lost.
    assert!((4.0..5.9).contains(&slept), "it slept for {slept} s instead of 4");
    host.done(&["rm", "-f", &program.name]);
}
