//! Programs that talk by datagrams, and ones that listen to the kernel, taken through round trips under load.

use floe_suite::{Host, Program, has};

const ROUNDS: usize = 5;

/// Three processes share a port and answer; four ask, each with several questions under way, and never ask twice: what is
/// lost leaves one waiting, what comes twice is noticed.
const ASKED_AND_ANSWERED: &str = r#"
import os, socket, struct, sys
PORT, UNDER_WAY = 5353, 16
def answer():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(('127.0.0.1', PORT))
    if os.fork(): return
    while True:
        text, sender = s.recvfrom(2000)
        s.sendto(text, sender)
def ask(number):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect(('127.0.0.1', PORT))
    s.settimeout(20)
    asked, answered, waiting = 0, 0, set()
    while True:
        stop = os.path.exists('stop')
        while len(waiting) < UNDER_WAY and not stop:
            s.send(struct.pack('II', number, asked) + b'x' * (asked % 1400))
            waiting.add(asked)
            asked += 1
        if not waiting: break
        text = s.recv(2000)
        whose, which = struct.unpack('II', text[:8])
        if whose != number or which not in waiting or len(text) != 8 + which % 1400: os._exit(2)
        waiting.remove(which)
        answered += 1
    os._exit(0 if asked == answered and asked > 1000 else 3)
for _ in range(3): answer()
askers = []
for number in range(4):
    pid = os.fork()
    if pid == 0:
        try: ask(number)
        except BaseException as error:
            print(error, flush=True)
            os._exit(4)
    askers.append(pid)
open('ready', 'w').close()
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in askers], flush=True)
"#;

#[test]
fn nothing_is_lost_or_comes_twice() {
    if !has("python3") {
        return;
    }
    let host = Host::new();
    let line = ["python3", "-c", ASKED_AND_ANSWERED];
    let program = Program::start_with(&host, "datagrams", &["--net", "none"], &line);
    program.await_file("ready");
    program.round_trips(ROUNDS);
    program.finish();
    assert_eq!(program.result(), "[0, 0, 0, 0]\n");
}

/// It hears of addresses that come and go, before and after.
#[test]
fn a_monitor_of_addresses_hears_on() {
    if !has("ip") {
        return;
    }
    let script = "ip -o monitor address > heard & monitor=$!
        change() { ip address add 127.1.1.$1/32 dev lo; ip address del 127.1.1.$1/32 dev lo; }
        until [ -s heard ]; do change 1; done
        until [ \"$(tail -n 1 heard | cut -c 1-7)\" = Deleted ]; do sleep 0.01; done
        touch ready; until [ -e stop ]; do sleep 0.02; done
        change 2; until grep -q 'Deleted.*127.1.1.2/' heard; do sleep 0.02; done
        kill $monitor; wait $monitor; grep -c 127.1.1.2/ heard";
    let host = Host::new();
    let program = Program::start_with(&host, "monitor", &["--net", "none"], &["bash", "-c", script]);
    program.await_file("ready");
    program.round_trips_between(ROUNDS, &["messages that wait in a netlink socket"]);
    program.finish();
    assert_eq!(program.result(), "2\n");
}
