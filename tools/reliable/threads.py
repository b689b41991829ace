"""torch.compile with the backend, in threads that run at once: each gets what it would get alone."""

from __future__ import annotations

import threading
import time

from . import RATIOS, Row, progress

AT_ONCE = 4
NAMES = ("deit_tiny", "swin_tiny", "beit_base", "eva02_tiny")


def run(count: int, seed: int = 0, say: bool = True) -> Row:
    import torch
    from zoo_exports import quiet
    from zoo_models import FAMILIES

    import toastc

    torch.set_num_threads(1)
    names = [name for name in NAMES if name in FAMILIES]
    options = {"ratios": RATIOS, "recipe": "magnitude", "then": "eager"}
    with quiet():
        nets = {name: (FAMILIES[name].small(seed).eval(), tuple(FAMILIES[name].inputs(False, 2).values())) for name in names}
        with torch.no_grad():
            alone = {
                name: torch.utils._pytree.tree_leaves(torch.compile(net, backend=toastc.backend, options=options)(*given))[0]
                for name, (net, given) in nets.items()
            }
    wrong: list[str] = []

    def one(name: str) -> None:
        try:
            net, given = nets[name]
            with torch.no_grad():
                out = torch.utils._pytree.tree_leaves(torch.compile(net, backend=toastc.backend, options=options)(*given))[0]
            if not torch.allclose(out, alone[name], atol=1e-5):
                wrong.append(f"{name}: something else came out")
        except Exception as error:  # noqa: BLE001  of a thread, to be told by the one who started it
            wrong.append(f"{name}: {type(error).__name__} {error}"[:300])

    begun = time.perf_counter()
    for done in range(1, count + 1):
        torch._dynamo.reset()
        threads = [threading.Thread(target=one, args=(names[i % len(names)],)) for i in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if say:
            progress("threads", done, count, len(wrong))
    for why in wrong:
        print(f"  {why}", flush=True)
    return {
        "rounds": count,
        "at once": AT_ONCE,
        "models": names,
        "seconds": round(time.perf_counter() - begun),
        "bad": len(wrong),
    }
