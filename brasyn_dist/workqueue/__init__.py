"""Work queue: items shared between processes through a folder.

Any launcher, job arrays or several terminals may start them.

    items --claim--> claims/ITEM.1 --work--> records/WORKER.jsonl --all recorded--> one process merges
              |
              +----> claims/ITEM.2, if the worker of ITEM.1 is dead: workers/WORKER unchanged for a lease

    <folder>/.workqueue/000001/{workers,claims,records}/     one pass over the items

There is no server, no lock that outlives its process, and no comparison of the clocks of different machines.
Two processes may process the same item if one of them was stopped for longer than the lease. Outputs are
therefore written atomically.

    queue      WorkQueue: claims, records, the end of a pass       heartbeat   worker liveness
    worker_processes   `--workers N`: several processes of one command
"""
