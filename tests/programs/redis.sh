# A server of keys with two clients that count, until there is a file `stop`. In a network namespace of its own.
redis-server --port 6379 --unixsocket "$PWD/socket" --appendonly yes --dir "$PWD" > server.log 2>&1 &
server=$!
until redis-cli ping > /dev/null 2>&1; do sleep 0.05; done
touch ready
count() {
    n=0
    until [ -e stop ] && ((n > 20)); do [ "$(redis-cli "$@" incr "counter$1")" = $((++n)) ] || echo "lost count at $n"; done
    echo counted
}
count -h 127.0.0.1 &
one=$!
count -s "$PWD/socket" &
wait $one $!
redis-cli shutdown nosave
wait $server
echo "ended $?"
