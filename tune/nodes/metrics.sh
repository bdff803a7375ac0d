#!/usr/bin/env bash
# On the head, with EAGLERAY_METRICS=1: Prometheus and Grafana on loopback, with Ray's panels and ours. Run after `ray start`,
# which writes their configuration. Reached through the tunnel: ssh -L 8265:localhost:8265 -L 3000:localhost:3000.
set -eu
[ "${EAGLERAY_METRICS:-0}" = 1 ] || exit 0
nodes=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$nodes/../.." && pwd)
ray=/tmp/ray/session_latest/metrics
folder=$HOME/.eagleray/metrics
grafana_version=12.2.0
mkdir -p "$folder/provisioning/datasources" "$folder/provisioning/dashboards" "$folder/dashboards"

for _ in $(seq 60); do [ -s $ray/prometheus/prometheus.yml ] && break; sleep 1; done

if ! command -v prometheus >/dev/null; then
    # A machine that has just booted updates itself, and holds apt's lock for minutes. A list that cannot be renewed then may
    # do all the same; panels that stay away are no reason to be without a cluster.
    get() { sudo apt-get -o DPkg::Lock::Timeout=300 -qq "$@"; }
    get update || true
    get install -y --no-install-recommends prometheus ||
        { echo "Prometheus could not be installed: the cluster runs without it and Grafana" >&2; exit 0; }
fi
# Debian's and Ubuntu's package starts one of its own, open to all interfaces.
if [ -d /run/systemd/system ]; then sudo systemctl disable --quiet --now prometheus 2>/dev/null || true; fi
bash "$nodes/keep.sh" prometheus prometheus --config.file=$ray/prometheus/prometheus.yml \
    --web.listen-address=127.0.0.1:9090 --storage.tsdb.path="$folder/prometheus" --storage.tsdb.retention.time=15d

# Neither distribution has Grafana: its maker's archive, by version.
server=$(command -v grafana-server || ls -d "$folder"/grafana-*/bin/grafana-server 2>/dev/null | tail -1 || true)
if [ -z "$server" ]; then
    archive=https://dl.grafana.com/oss/release/grafana-$grafana_version.linux-amd64.tar.gz
    curl -sSfL "$archive" | tar -xz -C "$folder" || { echo "Grafana could not be fetched; Prometheus runs without it"; exit 0; }
    server=$(ls -d "$folder"/grafana-*/bin/grafana-server | tail -1)
fi
cat >"$folder/provisioning/datasources/prometheus.yml" <<YML
apiVersion: 1
datasources:
  - {name: Prometheus, uid: Prometheus, type: prometheus, url: http://127.0.0.1:9090, access: proxy, isDefault: true}
YML
cat >"$folder/provisioning/dashboards/all.yml" <<YML
apiVersion: 1
providers:
  - {name: ray, folder: Ray, type: file, options: {path: $ray/grafana/dashboards}}
  - {name: eagleray, folder: eagleray, type: file, options: {path: $folder/dashboards}}
YML
for part in tune serve; do
    if [ -s "$project/$part/grafana.json" ]; then cp "$project/$part/grafana.json" "$folder/dashboards/$part.json"; fi
done
# Whoever came through the tunnel may look, and only look; embedding is how Ray's dashboard shows the panels.
export GF_SERVER_HTTP_ADDR=127.0.0.1 GF_SERVER_HTTP_PORT=3000 GF_AUTH_ANONYMOUS_ENABLED=true GF_AUTH_ANONYMOUS_ORG_ROLE=Viewer \
    GF_SECURITY_ALLOW_EMBEDDING=true GF_ANALYTICS_REPORTING_ENABLED=false GF_ANALYTICS_CHECK_FOR_UPDATES=false \
    GF_PATHS_DATA=$folder/data GF_PATHS_LOGS=$folder/logs GF_PATHS_PROVISIONING=$folder/provisioning
home=$(dirname "$(dirname "$server")")
[ -d "$home/conf" ] || home=/usr/share/grafana
env -0 | tr '\0' '\n' | grep '^GF_' | sed "s/=\(.*\)/='\1'/; s/^/export /" >"$folder/grafana.env"
bash "$nodes/keep.sh" grafana bash -c ". $folder/grafana.env; exec $server --homepath $home"
