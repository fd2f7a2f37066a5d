#!/bin/sh
# A certificate authority for tests, and certificates of it for the server and one client:
#
#   docs/deploy/make-test-ca.sh certs triton.hospital.lan      # names that clients call the server by
#
# Good for 30 days. In production the certificates come from the hospital's own authority, under the same file names.
set -eu
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [NAME...]" >&2; exit 2; }
folder=$1; shift
[ ! -e "$folder/ca.key" ] || { echo "$folder has an authority already: remove it first" >&2; exit 1; }
names="DNS:localhost,IP:127.0.0.1"
for name in "$@"; do names="$names,DNS:$name"; done

mkdir -p "$folder"
umask 077
cd "$folder"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=medclip-triton test CA" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout ca.key -out ca.pem 2>/dev/null
issue() { # name, usage, alternative names
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=%s\nsubjectAltName=%s\n' "$2" "$3" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile "$1.ext" -out "$1.pem" 2>/dev/null
    rm "$1.csr" "$1.ext"
}
issue server serverAuth "$names"
issue client clientAuth "DNS:client"
chmod 644 ./*.pem
echo "wrote ca.pem, server.pem, client.pem and their keys to $folder; keep ca.key elsewhere"
