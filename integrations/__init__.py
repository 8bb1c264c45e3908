"""One file per neighbouring system."""

import sys

# httpx reads its own command line where rich and click are installed: 0.06 s of CPU and 6 MiB in every process.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: there is none to be found
# httpcore looks through all of Python's path for it several times a request, where it is not; here all is asyncio.
sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]
