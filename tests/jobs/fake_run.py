"""The real command with the fake engine: python fake_run.py JOB.yaml …"""

import sys

import fake_llm

sys.modules["rwkv_batch.llm"] = fake_llm

from rwkv_batch.run import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
