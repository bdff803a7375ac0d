"""What the command tells the person who started it: the address, a line that works, and where the keys are."""

import os
from collections.abc import Mapping

from serve.door.keyfile import first_key
from serve.door.keystore import Keys, resolved
from serve.settings import ServeConfig

_VARIABLE = "EAGLERAY_KEY"


def how_to_call(config: ServeConfig, model: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Lines for the terminal. Where nobody has a key yet, one is made, and this is the only place that shows it.

    UserError where the key file or EAGLERAY_KEYS cannot be read.
    """
    url = url_of(config)
    lines = [f"model {model} answers at {url} (a page to try it; what it takes: {url}/docs)"]
    trust = f"--cacert {config.tls_cert} " if config.tls_cert else ""
    call = f"--data-binary @photo.jpg {url}/predict"
    if config.endpoint.auth == "off":
        return [*lines, f"  curl {trust}{call}", "It asks for no key: whoever reaches the port can use it."]
    file = resolved(config.endpoint.keys)
    new = None if Keys(environ).names else first_key(file)
    if new is not None:
        lines += [
            f"  curl {trust}-H 'Authorization: Bearer {new.key}' {call}",
            f"Its key is shown here and never again ({file} keeps a hash of it, under the name {new.name}).",
        ]
    else:
        names = ", ".join(Keys.open(file, environ).names)
        lines += [
            f'  curl {trust}-H "Authorization: Bearer ${_VARIABLE}" {call}',
            f"with your key in {_VARIABLE}; keys: {names} (of {file} and the environment).",
        ]
    return [*lines, "python serve/keys.py makes and removes keys."]


def url_of(config: ServeConfig) -> str:
    """Where the endpoint answers, as seen from this machine."""
    host = reachable(config.host)
    scheme = "https" if config.tls_cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.port}"


def reachable(host: str) -> str:
    """An address of this machine that reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
