//! Packet filters besides nf_tables': a router with rules of iptables-legacy and sets of ipset, and those behind it.

use floe_suite::{Host, PID_METHODS, Traces, Victim, has, json, run, skip, until};
use std::fs;

/// A router, a server behind it that has a filter of its own and is in a user namespace too, and a client that asks all the time.
/// Of the first set the number stays free, in the router and at the server.
const ROUTER: &str = "
contain() {
    unshare $1 -n sh -c '
        ip link set lo up && touch $0/$1 && until ip link set eth0 up; do sleep 0.01; done 2> /dev/null &&
        ip addr add $2.2/24 dev eth0 && ip addr add $2.130/24 dev eth0 && ip route add default via $2.1 &&
        eval \"$3\" && exec python3 $0/$1.py $0/count' $PLACE $2 $3 \"$4\" &
    until [ -e $PLACE/$2 ]; do sleep 0.01; done
    ip link add v-$2 type veth peer name eth0 netns $! && ip addr add $3.1/24 dev v-$2 && ip link set v-$2 up
    echo $! > $PLACE/$2.pid
}
ip link set lo up && echo 1 > /proc/sys/net/ipv4/ip_forward
ipset create first hash:ip && ipset create blocked hash:net counters comment && ipset create seen hash:ip timeout 100900
ipset add blocked 10.9.2.128/25 comment 'the upper half' && ipset destroy first
while read -r rule; do iptables-legacy -w $rule || exit; done <<'END'
-P FORWARD DROP
-A FORWARD -m set --match-set blocked src -j DROP
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -p udp --dport 9000 -m conntrack --ctstate DNAT -j SET --add-set seen src --exist
-A FORWARD -p udp --dport 9000 -m conntrack --ctstate DNAT -j ACCEPT
-t nat -A PREROUTING -p udp --dport 82 -j DNAT --to-destination 10.9.1.2:9000
END
contain -Ur server 10.9.1 'ipset create first hash:ip && ipset create known hash:ip,port && ipset destroy first &&
    ipset add known 10.9.2.2,udp:9000 && ipset add known 10.9.2.130,udp:9000 && iptables-legacy -w -P INPUT DROP &&
    iptables-legacy -w -A INPUT -m set --match-set known src,dst -j ACCEPT'
contain '' client 10.9.2 'ip6tables-legacy -w -A INPUT -p tcp --dport 7 -j REJECT'
wait";

const SERVER: &str = "import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('10.9.1.2', 9000))
while True: server.sendto(*server.recvfrom(99))";

const CLIENT: &str = "import os, socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.bind(('10.9.2.2', 0))
client.settimeout(1)
done = 0
while True:
    try:
        client.sendto(b'%d' % done, ('10.9.2.1', 82))
        while int(client.recv(99)) != done: pass
        done += 1
        with open(sys.argv[1] + '.new', 'w') as file: file.write(str(done))
        os.rename(sys.argv[1] + '.new', sys.argv[1])
    except OSError: pass";

/// Whether there is an answer for who has an address.
const ASK: &str = "import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind((sys.argv[1], 0))
one.settimeout(0.5)
one.sendto(b'0', (sys.argv[2], int(sys.argv[3])))
try: print(one.recv(9).decode())
except OSError as error: print(type(error).__name__)";

#[test]
fn a_busy_router_lets_through_and_holds_back_what_it_did() {
    let programs = ["ip", "python3", "ipset", "iptables-legacy", "unshare", "nsenter"];
    if let Some(missing) = programs.iter().find(|program| !has(program)) {
        return skip(&format!("there is no {missing}"));
    }
    let host = Host::new();
    let place = host.path("place");
    fs::create_dir(&place).expect("a folder");
    for (name, program) in [("server.py", SERVER), ("client.py", CLIENT)] {
        fs::write(place.join(name), program).expect("a program");
    }
    let setting = format!("PLACE={}", place.display());
    host.done(&[
        "run", "-d", "--name", "router", "--net", "none", "--", "env", &setting, "sh", "-c", ROUTER,
    ]);
    let count = || {
        let text = fs::read_to_string(place.join("count")).unwrap_or_default();
        text.parse::<u64>().unwrap_or(0)
    };
    until("answers", || count() > 100);
    let exec = |line: &[&str]| host.floe(&[&["exec", "router", "--"], line].concat());
    let pid = |name: &str| fs::read_to_string(place.join(format!("{name}.pid"))).expect("a PID");
    let client = pid("client");
    let ask = |from: &str, to: &str, port: &str| {
        let line = [
            "nsenter",
            "-t",
            client.trim(),
            "-n",
            "python3",
            "-c",
            ASK,
            from,
            to,
            port,
        ];
        exec(&line).expect_done().trim().to_owned()
    };
    let answers = || {
        [
            ask("10.9.2.2", "10.9.2.1", "82"),
            // In the set that is blocked.
            ask("10.9.2.130", "10.9.2.1", "82"),
            // Not translated.
            ask("10.9.2.2", "10.9.1.2", "9000"),
        ]
    };
    let wanted = ["0", "TimeoutError", "TimeoutError"];
    assert_eq!(answers(), wanted);
    let rules = || {
        let mut told = exec(&["iptables-legacy-save"]).expect_done();
        for name in ["server", "client"] {
            let enter = ["nsenter", "-t", pid(name).trim(), "-n"].map(str::to_owned);
            let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
            for program in [
                &["iptables-legacy-save"][..],
                &["ip6tables-legacy-save"],
                &["ipset", "save"],
            ] {
                told += &exec(&[&enter, program].concat()).expect_done();
            }
        }
        let kept = told
            .lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with(':'));
        kept.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = rules();
    for _ in 0..3 {
        let image = host.path("router.floe").display().to_string();
        host.done(&["checkpoint", "router", "-o", &image]);
        let told = host.done(&["inspect", &image, "networks"]);
        for title in ["ipset blocked (hash:net, 1 elements)", "table nat of iptables-legacy"] {
            assert!(told.contains(title), "{told}");
        }
        let networks = json(&host.done(&["inspect", "--json", &image, "networks"]));
        let sets = networks
            .as_array()
            .expect("a list")
            .iter()
            .map(|one| one["sets"].as_u64());
        assert_eq!(sets.flatten().sum::<u64>(), 3, "{networks}");
        let asked = count();
        host.done(&["check", "--image", &image]);
        host.done(&["restore", "-d", &image]);
        fs::remove_file(&image).expect("remove");
        until("more answers", || count() > asked + 100);
        assert_eq!(answers(), wanted);
        assert_eq!(rules(), before);
        let seen = exec(&["ipset", "test", "seen", "10.9.2.2"]);
        assert_eq!(seen.status, 0, "{}", seen.err);
    }
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    let host = Host::new();
    let traces = Traces::look(&host, &["packet-filter-legacy"], &[]);
    let mut victim = Victim::start(&host, "packet-filter-legacy", &["--net", "none"], &[]);
    let image = host.path("image.floe").display().to_string();
    host.done(&["checkpoint", "packet-filter-legacy", "-o", &image]);
    for stage in ["network", "files", "verify"] {
        let mut command = host.command(&["restore", "-d", &image]);
        let error = run(command.env("FLOE_FAIL_AT", stage)).expect_failed();
        assert!(error.contains(stage), "{error}");
        traces.expect_again(&host, &["packet-filter-legacy"], &[], stage);
    }
    host.done(&["restore", "-d", &image]);
    victim.check("restored at last");
}

/// Rules name users, whom the kernel knows in the user namespace that the network belongs to alone.
#[test]
fn rules_of_users_come_back_in_a_network_of_a_user_namespace() {
    for (program, save) in [
        ("iptables-legacy", "iptables-legacy-save"),
        ("iptables-nft", "iptables-nft-save"),
    ] {
        if !has(program) {
            return skip(&format!("there is no {program}"));
        }
        let host = Host::new();
        let job = host.name("owner");
        let inside = format!(
            "{program} -w -A OUTPUT -m owner --uid-owner 0 -j ACCEPT && {save} | grep -v '^[#:]' > told && \
             while :; do {save} | grep -v '^[#:]' > now.new; mv now.new now; sleep 0.1; done"
        );
        let folder = host.folder("place");
        let place = folder.display().to_string();
        let line = ["sh", "-c", "unshare -Urn sh -c \"$0\" & wait", &inside];
        host.done(
            &[
                &["run", "-d", "--net", "none", "--name", &job, "-w", &place, "--"],
                &line[..],
            ]
            .concat(),
        );
        let now = || fs::read_to_string(folder.join("now")).unwrap_or_default();
        until("the rule", || now().contains("--uid-owner 0"));
        let told = fs::read_to_string(folder.join("told")).expect("rules");
        for method in PID_METHODS {
            let image = host.path("owner.floe").display().to_string();
            host.done(&["checkpoint", &job, "-o", &image]);
            fs::remove_file(folder.join("now")).expect("it is there");
            host.done(&["restore", "-d", "--pid-method", method, &image]);
            until("what the rules are now", || now() == told);
        }
    }
}

/// Which of two chains at one place comes first only the kernel knows.
#[test]
fn two_tables_that_translate_at_one_place_are_refused() {
    let programs = ["iptables-legacy", "nft"];
    if let Some(missing) = programs.iter().find(|program| !has(program)) {
        return skip(&format!("there is no {missing}"));
    }
    const NFT: &str = "nft add table ip NAME && nft add chain ip NAME out '{ type nat hook output priority -100; }' && \
        nft add rule ip NAME out tcp dport 80 dnat to 127.0.0.1:9001";
    const LEGACY: &str =
        "iptables-legacy -w -t nat -A OUTPUT -p tcp --dport 80 -j DNAT --to-destination 127.0.0.1:9002";
    let one = NFT.replace("NAME", "one");
    let cases = [
        (format!("{one} && {LEGACY}"), Some("table ip one")),
        (
            format!("{one} && {}", NFT.replace("NAME", "other")),
            Some("table ip other"),
        ),
        // Alone, and beside one that translates nothing.
        (format!("{one} && iptables-legacy -w -t nat -L -n"), None),
    ];
    for (rules, refused) in cases {
        let host = Host::new();
        let job = host.name("nat");
        let ready = host.path("ready");
        let script = format!(
            "{rules} > /dev/null && touch {} && exec sleep infinity",
            ready.display()
        );
        host.done(&["run", "-d", "--net", "none", "--name", &job, "--", "sh", "-c", &script]);
        until("the rules", || ready.exists());
        let image = host.path("nat.floe").display().to_string();
        let outcome = host.floe(&["checkpoint", &job, "--leave-running", "-o", &image]);
        match refused {
            None => drop(outcome.expect_done()),
            Some(name) => {
                let error = outcome.expect_failed();
                let told = error
                    .lines()
                    .find(|line| line.contains(name) && line.contains("translates addresses"));
                assert!(told.is_some(), "{error}");
                assert_eq!(host.state(&job), "running");
            }
        }
    }
}
