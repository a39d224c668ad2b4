# Asynchronous I/O (libaio) past the page cache, 32 requests at a time from each of two processes, until there is a file
# `stop`. What is read is checked against what was written.
touch ready
faults=0
until [ -e stop ]; do
    fio --name=job --numjobs=2 --size=16m --ioengine=libaio --direct=1 --iodepth=32 --rw=randrw --bs=4k \
        --verify=crc32c --verify_fatal=1 --time_based --runtime=2 > fio.log 2>&1 || faults=$((faults + 1))
done
echo "faults $faults"
[ $faults = 0 ] || cat fio.log
