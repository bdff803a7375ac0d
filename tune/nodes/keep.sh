#!/usr/bin/env bash
# keep.sh NAME COMMAND...: run the command in the background and again whenever it fails; what ran under that name before ends first.
# Output goes to ~/.eagleray/NAME.log. A command that ends well is not run again.
set -eu
name=$1; shift
folder=$HOME/.eagleray; mkdir -p "$folder"
log=$folder/$name.log

if [ -d /run/systemd/system ] && sudo -n true 2>/dev/null; then
    # A unit rather than a background process: it is there again after a reboot, which Ray is not.
    unit=eagleray-$name.service
    printf '. %q\nexec %s\n' "$folder/env" "$(printf '%q ' "$@")" >"$folder/$name.sh"
    {
        printf '[Unit]\nAfter=network-online.target\nStartLimitIntervalSec=0\n'
        printf '[Service]\nUser=%s\nWorkingDirectory=%s\nRestart=on-failure\nRestartSec=2\n' "$(id -un)" "$HOME"
        printf 'StandardOutput=append:%s\nStandardError=append:%s\n' "$log" "$log"
        printf 'ExecStart=/bin/bash %s\n[Install]\nWantedBy=multi-user.target\n' "$folder/$name.sh"
    } | sudo tee "/etc/systemd/system/$unit" >/dev/null
    sudo systemctl daemon-reload
    sudo systemctl enable --quiet "$unit"
    sudo systemctl restart "$unit"
    exit
fi

pidfile=$folder/$name.pid
if [ -s "$pidfile" ]; then
    old=$(cat "$pidfile")
    # A number may have gone to another process since then.
    if tr '\0' ' ' <"/proc/$old/cmdline" 2>/dev/null | grep -q "keep-$name"; then kill -- "-$old" || true; fi
fi
setsid nohup bash -c 'until "$@"; do sleep 2; done' "keep-$name" "$@" >>"$log" 2>&1 </dev/null &
echo $! >"$pidfile"
