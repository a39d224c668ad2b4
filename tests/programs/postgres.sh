# A database server with four clients that work, in a folder of its own: `postgres.sh BIN`, where BIN holds its programs.
# In the end the books must balance.
set -e
export PATH=$1:$PATH PGHOST=$PWD PGDATABASE=postgres
initdb -A trust -D data > initdb.log 2>&1
postgres -D data -c listen_addresses=127.0.0.1 -c unix_socket_directories="$PWD" > server.log 2>&1 &
server=$!
until psql -c 'select 1' > /dev/null 2>&1; do sleep 0.1; done
pgbench -i -s 1 > init.log 2>&1
touch ready
until [ -e stop ]; do
    # Over TCP and over the unix socket.
    pgbench -h 127.0.0.1 -n -c 3 -T 1 > clients-tcp.log 2>&1 &
    pgbench -n -c 4 -j 2 -T 1 > clients.log 2>&1 || echo "clients failed: $?"
    wait $! || echo "clients over TCP failed: $?"
done
psql -Atc 'select sum(abalance) = (select sum(delta) from pgbench_history) from pgbench_accounts'
psql -Atc 'select sum(bbalance) = (select sum(delta) from pgbench_history) from pgbench_branches'
psql -Atc 'select count(*) > 100 from pgbench_history'
kill -INT $server
wait $server
grep -c PANIC server.log || true
