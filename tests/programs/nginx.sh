# A web server with two workers and a client that asks and asks, until there is a file `stop`. In a network namespace of
# its own.
cat > nginx.conf <<END
worker_processes 2;
pid $PWD/nginx.pid;
error_log $PWD/error.log;
daemon off;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path $PWD/body; proxy_temp_path $PWD/proxy; fastcgi_temp_path $PWD/fastcgi;
    uwsgi_temp_path $PWD/uwsgi; scgi_temp_path $PWD/scgi;
    server { listen 127.0.0.1:8080; listen unix:$PWD/socket; root $PWD/www; }
}
END
mkdir -p www
head -c 300000 /dev/urandom > www/file
nginx -p "$PWD" -c "$PWD/nginx.conf" &
server=$!
until curl -sf -o /dev/null http://127.0.0.1:8080/file; do sleep 0.05; done
touch ready
faults=0 asked=0
until [ -e stop ] && ((asked > 20)); do
    curl -sf http://127.0.0.1:8080/file | cmp -s - www/file || faults=$((faults + 1))
    curl -sf --unix-socket socket http://x/file | cmp -s - www/file || faults=$((faults + 1))
    asked=$((asked + 2))
done
kill -QUIT $server
wait $server
echo "faults $faults, ended $?"
