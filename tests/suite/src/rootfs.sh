# Makes a root directory with a shell, the usual commands and Python in it, of files that this host has installed.
set -eu
root=$1
mkdir -p "$root"/{proc,dev,sys,tmp,etc,srv,root,usr/{bin,lib,lib64}}
chmod 1777 "$root/tmp"
for name in bin lib lib64; do ln -s "usr/$name" "$root/$name"; done
echo root:x:0:0:root:/root:/bin/bash >"$root/etc/passwd"
copy() { [[ -e $root$1 ]] || { mkdir -p "$root${1%/*}" && cp -L "$1" "$root$1"; }; }
needed() { ldd "$@" 2>/dev/null | grep -o '/[^ )]*\.so[^ )]*' | sort -u || true; }
python=$(readlink -f /usr/bin/python3)
programs=("$python")
for name in bash sh cat ls sleep date echo readlink id stat touch mkdir rm mv; do programs+=("$(type -P $name)"); done
library=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')
mkdir -p "$root$library"
cp -a "$library"/{*.py,collections,encodings,email,http,html,importlib,json,re,urllib,lib-dynload} "$root$library/"
for file in "${programs[@]}" $(needed "${programs[@]}" "$library"/lib-dynload/*.so); do
    [[ $file == "$library"/* ]] || copy "$file"
done
[[ -e $root/usr/bin/python3 ]] || ln -s "${python##*/}" "$root/usr/bin/python3"
