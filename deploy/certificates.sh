#!/usr/bin/env bash
# A first TLS set-up: a private certificate authority, one certificate for the services, one for a client, and a token.
# Usage: deploy/certificates.sh FOLDER [NAME_OR_IP ...]     names: how clients reach the services
# (default: cloud cloud-gpu orchestrator localhost 127.0.0.1). Run again, it renews the certificates, for DAYS (default 365)
# from now, and keeps authority and token.
set -eu
[ $# -ge 1 ] || { sed -n '3s/^# //p' "$0"; exit 2; }
command -v openssl >/dev/null || { echo "error: openssl is not installed"; exit 1; }
folder=$1
shift
[ $# -gt 0 ] || set -- cloud cloud-gpu orchestrator localhost 127.0.0.1
days=${DAYS:-365}

# The folder is the guard: nobody else on this machine gets in. The files can be read by all, because the user of
# a container that one of them is mounted into is not the one who runs this.
umask 022
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

names=
for name in "$@"; do
  case $name in
    *[!0-9.]* | '') kind=DNS ;;
    *) kind=IP ;;
  esac
  case $name in *:*) kind=IP ;; esac
  names="$names${names:+,}$kind:$name"
done

new_key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" && chmod 644 "$1"; }

# signed FILE SUBJECT EXTENSIONS: FILE.key and FILE.pem, signed by the authority.
signed() {
  new_key "$1.key"
  printf '%s\n' "$3" "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" \
    "subjectKeyIdentifier=hash" "authorityKeyIdentifier=keyid" >"$1.ext"
  openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -set_serial "0x$(openssl rand -hex 16)" -days "$days" -sha256 \
    -extfile "$1.ext" -out "$1.pem" 2>/dev/null
  rm "$1.csr" "$1.ext"
}

if [ ! -f ca.pem ]; then
  new_key ca.key
  chmod 600 ca.key
  openssl req -x509 -new -key ca.key -sha256 -days 3650 -subj "/CN=ecdiff private authority" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -out ca.pem
fi
signed server ecdiff "subjectAltName=$names
extendedKeyUsage=serverAuth"
signed client "ecdiff client" "extendedKeyUsage=clientAuth"
[ -f token ] || openssl rand -hex 32 >token

echo "$folder: ca.pem, server.pem and server.key ($names), client.pem and client.key, token; valid for $days days"
echo "keep ca.key away from the services: whoever has it can make certificates"
