# A server of many keys, with a client that counts, until there is a file `stop`. In a network namespace of its own.
redis-server --port 6379 --save '' --dir "$PWD" --enable-debug-command yes > server.log 2>&1 &
server=$!
until redis-cli ping > /dev/null 2>&1; do sleep 0.05; done
redis-cli debug populate 150000 key 150 > /dev/null
before=$(redis-cli debug digest)
touch ready
n=0
until [ -e stop ] && ((n > 20)); do [ "$(redis-cli incr counter)" = $((++n)) ] || echo "lost count at $n"; done
redis-cli del counter > /dev/null
[ "$(redis-cli debug digest)" = "$before" ] && echo "the same"
redis-cli shutdown nosave
wait $server
echo "ended $?"
