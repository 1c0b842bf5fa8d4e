"""The process of a policy.

Does not know: how a policy decides, or what becomes of its proposals.
Run: `python -m trimtab.runtime.policy_process --admin URL --token-file F --bundle DIR`, by
`trimtab serve`.
"""

import argparse
import logging
import signal
from pathlib import Path

from ..admin.client import AdminClient, read_token
from ..serving.child import die_with_parent, stand_back
from .policy_loop import PolicyLoop
from .policy_source import policy_of


def main() -> None:
    """Propose until SIGTERM."""
    die_with_parent()
    stand_back()
    parser = argparse.ArgumentParser(description="Propose knobs to a gateway, window by window.")
    parser.add_argument("--admin", required=True, help="http://HOST:PORT of its admin port")
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--source", default="", help="tells its proposals from those of others")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--scheduler", default="analytic-scorer")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="policy: %(levelname)s %(message)s")
    policy, novelty = policy_of(arguments.bundle, arguments.scheduler)
    with AdminClient(arguments.admin, read_token(arguments.token_file), timeout_s=5.0) as client:
        loop = PolicyLoop(policy, client, source=arguments.source, novelty=novelty)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.stop())
        loop.run()


if __name__ == "__main__":
    main()
