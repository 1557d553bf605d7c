"""Reports as single HTML files that need no network: the parts that every report is made of.

    page         sections --> one file: style, light and dark, navigation; tables, lists of facts, folds
    charts       matplotlib --> inline SVG whose colours follow the page's theme
    pictures     RGB arrays and files --> images within the page
    curves       metrics.jsonl, performance.jsonl --> charts by optimiser step
    provenance   versions, commit, hashes

report/evaluation_report.py makes the report of an evaluation, report/training_report.py that of a run, which
`python -m brasyn_dist.report RUN` writes anew.
"""
