"""Work shared out between processes that know nothing of each other but a folder: any launcher, job arrays, several terminals.

    items --draw--> claims/ITEM.1 --> work --record--> journals/WORKER.jsonl --all there?--> finish: one merges --> results
              |         created by one process only                 |
              +-- claims/ITEM.2 if the owner of ITEM.1 has died <---+-- workers/WORKER: touched all the time by its owner

    <folder>/000001/{workers,claims,journals}/      a round: one pass over the items, by all who join while it lasts

No process waits for another: an item goes to whoever is free, and is anybody's again when its owner is seen to be dead. There
is no server, no lock that outlives its holder, no clock that has to agree with another's. Two processes may at times do one
item twice (one was stopped and woke up): outputs are renamed into place and deterministic, so that is a waste, not an error.

    alive    who is at work, and whether it still lives          round    claims, records, the end of a pass
    journal  one file of JSON lines for each process             place    what a launcher or Slurm says: device, threads, job
    helpers  `--workers N`: processes of one command
"""
