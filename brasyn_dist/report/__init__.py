"""HTML reports: single files that need no network, rendered from the Jinja2 templates in templates/.

    rendering           template environment, palette, pictures as data URIs
    charts              matplotlib --> inline SVG, whose colours follow the theme of the page
    curves              metrics.jsonl, performance.jsonl --> charts by optimiser step
    score_tables        summary of an evaluation --> cards, tables and distribution charts
    case_views          slices of single cases with outlines of the tumour
    provenance_facts    versions, commit, hashes
    training_report, evaluation_report, dataset_report: the three reports

The Python modules prepare the data; templates/*.html.j2 contain all markup. `brasyn report RUN`
writes the report of a training run.
"""
