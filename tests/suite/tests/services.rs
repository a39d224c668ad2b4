//! A container without systemd: a small supervisor that keeps several services, under `--init`, in a root directory and a
//! network of its own.

use floe_suite::{Host, PID_METHODS, has, skip, until};

/// Starts each service, and once more whenever it ends; and does something every now and then, as cron does.
const SUPERVISOR: &str = r#"
mkdir -p /srv/www /srv/redis /srv/nginx
echo 'it works' > /srv/www/index.html
cat > /srv/nginx.conf <<END
daemon off; pid /srv/nginx/pid; error_log /srv/nginx/error.log; worker_processes 2; user root;
events { worker_connections 64; }
http { access_log off; client_body_temp_path /srv/nginx/1; proxy_temp_path /srv/nginx/2; fastcgi_temp_path /srv/nginx/3;
  uwsgi_temp_path /srv/nginx/4; scgi_temp_path /srv/nginx/5; server { listen 8080; root /srv/www; } }
END
keep() { while :; do "$@" > "/srv/$1.out" 2>&1; echo "$1" >> /srv/ended; sleep 0.1; done; }
keep nginx -c /srv/nginx.conf &
keep redis-server --port 6379 --dir /srv/redis --save '' --appendonly no &
(n=0; while :; do n=$((n + 1)); echo $n > /srv/cron.new; mv /srv/cron.new /srv/cron; sleep 0.05; done) &
wait
"#;

struct Services<'a> {
    host: &'a Host,
    name: String,
}

impl Services<'_> {
    fn inside(&self, script: &str) -> String {
        self.host.floe(&["exec", &self.name, "--", "bash", "-c", script]).out
    }

    fn ask_redis(&self, words: &str) -> String {
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/6379; printf '{words}\\r\\n' >&3; head -n1 <&3");
        self.inside(&script).trim().to_owned()
    }

    fn ask_nginx(&self) -> String {
        self.inside("exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; tail -n1 <&3")
    }

    fn cron(&self) -> u64 {
        self.inside("cat /srv/cron").trim().parse().unwrap_or(0)
    }

    fn work(&self, when: &str) {
        let before = self.cron();
        until(&format!("the clock's work {when}"), || self.cron() > before);
        until(&format!("nginx {when}"), || self.ask_nginx() == "it works\n");
        until(&format!("redis {when}"), || self.ask_redis("PING") == "+PONG");
    }
}

#[test]
fn services_under_a_supervisor_go_on() {
    if !has("nginx") || !has("redis-server") {
        skip("nginx or redis-server is not installed");
        return;
    }
    let host = Host::new();
    let (name, image) = (host.name("services"), host.path("services.floe"));
    let image = image.to_str().expect("a plain path");
    let line = [
        "run", "-d", "--init", "--net", "none", "--tmpfs", "/srv", "--name", &name,
    ];
    host.done(&[&line[..], &["--", "bash", "-c", SUPERVISOR]].concat());
    let services = Services { host: &host, name };
    services.work("at first");
    for (trip, method) in (1..).zip(PID_METHODS.iter().cycle().take(5)) {
        assert_eq!(services.ask_redis("INCR trips"), format!(":{trip}"));
        host.done(&["checkpoint", &services.name, "-o", image]);
        host.done(&["restore", "-d", "--pid-method", method, image]);
        services.work(&format!("after trip {trip}"));
        assert_eq!(services.inside("cat /srv/ended 2> /dev/null"), "", "none of them ended");
    }
    // What ends is started anew by its supervisor, and reaped.
    let old = services.inside("cat /srv/nginx/pid");
    services.inside("kill -9 $(cat /srv/nginx/pid); pkill -9 -x nginx");
    until("another nginx", || {
        services.ask_nginx() == "it works\n" && services.inside("cat /srv/nginx/pid") != old
    });
    assert_eq!(services.ask_redis("GET trips"), "$1");
    host.done(&["kill", "-s", "KILL", &services.name]);
    assert_eq!(host.done(&["wait", &services.name]).trim(), "137");
}
