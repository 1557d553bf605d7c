"""The look of all reports: one style sheet, colours as variables, so that charts and page change theme together."""

_LIGHT = (
    "--page:#f4f6f8;--card:#fff;--ink:#18212c;--muted:#586575;--line:#dde3ea;--accent:#1f5fa8;--tint:#e9f1fb;--bad:#b3261e;"
    "--good:#176f30;--s1:#1f66b8;--s2:#c25e00;--s3:#7a8594;--s4:#0b7d69;--s5:#a23b8f;--s6:#8a6d00"
)
_DARK = (
    "--page:#10151b;--card:#182029;--ink:#e7ecf2;--muted:#9caaba;--line:#2b3643;--accent:#7db4f5;--tint:#1e3148;--bad:#ff8a80;"
    "--good:#6fd58b;--s1:#6daef7;--s2:#f2a150;--s3:#98a5b5;--s4:#4ccdb0;--s5:#e08ad0;--s6:#d9b93b"
)
VARIABLES = ("ink", "muted", "line", "card", "s1", "s2", "s3", "s4", "s5", "s6")
"""Colours that charts may use; s1 to s6 tell series apart, also for the colour-blind and on both grounds."""
SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")

STYLE = f"""
:root{{color-scheme:light;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{_DARK}}}}}
:root[data-theme=dark]{{color-scheme:dark;{_DARK}}}
*{{box-sizing:border-box}}
html{{scroll-behavior:smooth;scroll-padding-top:3.5rem;-webkit-text-size-adjust:100%}}
body{{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}}
header.top,main,footer{{max-width:1180px;margin:0 auto;padding:0 clamp(1rem,3vw,2rem)}}
header.top{{padding-top:1.8rem;padding-bottom:.6rem;position:relative}}
h1{{font-size:clamp(1.45rem,4vw,2rem);line-height:1.2;margin:0 3rem .3rem 0;letter-spacing:-.01em;overflow-wrap:anywhere}}
h2{{font-size:1.25rem;margin:0 0 .2rem}}h3{{font-size:1.02rem;margin:1.5rem 0 .5rem}}h4{{font-size:.85rem;margin:0;color:var(--muted);font-weight:600}}
p{{margin:.3rem 0 .8rem}}.note{{color:var(--muted);font-size:.92rem;max-width:75ch}}
nav{{position:sticky;top:0;z-index:3;background:var(--page);border-bottom:1px solid var(--line);overflow-x:auto;scrollbar-width:none}}
nav::-webkit-scrollbar{{display:none}}
nav ul{{display:flex;gap:.3rem;list-style:none;max-width:1180px;margin:0 auto;padding:.35rem clamp(.6rem,2.5vw,1.6rem);white-space:nowrap}}
nav a{{display:block;padding:.35rem .7rem;border-radius:99px;color:var(--muted);text-decoration:none;font-size:.92rem}}
nav a:hover,nav a:focus-visible{{background:var(--tint);color:var(--ink)}}
section{{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:clamp(1rem,2.5vw,1.6rem);margin:1.1rem 0}}
a{{color:var(--accent)}}:focus-visible{{outline:2px solid var(--accent);outline-offset:2px}}
.cards{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,max(9.4rem,22%)),1fr));gap:.7rem;margin:1rem 0}}
.card{{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:.8rem 1rem}}
.card .name{{color:var(--muted);font-size:.85rem}}.card .value{{font-size:1.5rem;font-weight:650;line-height:1.3;overflow-wrap:anywhere}}
.card .more{{font-size:.88rem;color:var(--muted)}}.good{{color:var(--good)}}.bad{{color:var(--bad)}}
.scroll{{overflow-x:auto;margin:.6rem 0;scrollbar-width:thin}}
table{{border-collapse:separate;border-spacing:0;font-size:.9rem;white-space:nowrap;min-width:100%;font-variant-numeric:tabular-nums}}
th,td{{padding:.4rem .6rem;text-align:right;border-bottom:1px solid var(--line)}}th{{font-weight:600;vertical-align:bottom}}
thead th{{color:var(--muted);font-size:.82rem;line-height:1.3}}thead small{{display:block;font-weight:400}}abbr{{text-decoration:none}}
.text{{text-align:left}}tbody th{{text-align:left;font-weight:500;position:sticky;left:0;background:var(--card);z-index:1}}
thead th:first-child{{text-align:left;position:sticky;left:0;background:var(--card);z-index:2}}
tr.group th{{padding-top:1rem;font-weight:700;border-bottom-color:var(--muted);position:static}}
tr.ours td,tr.ours th{{background:var(--tint)}}td.best{{font-weight:700}}td small{{color:var(--muted)}}
dl{{display:grid;grid-template-columns:minmax(7rem,max-content) minmax(0,1fr);gap:.35rem 1.2rem;font-size:.92rem;margin:.6rem 0}}
dt{{color:var(--muted)}}dd{{margin:0;overflow-wrap:anywhere}}
@media (max-width:520px){{dl{{grid-template-columns:minmax(0,1fr);gap:0}}dd{{margin-bottom:.55rem}}}}
.charts{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15.3rem),1fr));gap:1rem}}
figure{{margin:0}}.chart svg{{display:block;width:100%;height:auto;max-width:26rem}}
.chart svg *{{stroke-linejoin:round;stroke-linecap:butt}}
figcaption{{font-size:.85rem;color:var(--muted)}}.chart figcaption{{color:var(--ink);font-weight:600;font-size:.92rem;margin-bottom:.15rem}}
.legend{{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;list-style:none;padding:0;margin:.6rem 0;font-size:.9rem}}
.legend i{{display:inline-block;width:.8rem;height:.8rem;border-radius:3px;margin-right:.4rem;vertical-align:-.05rem}}
.case{{border-top:1px solid var(--line);padding-top:1rem;margin-top:1.2rem}}.case h3{{margin:0;overflow-wrap:anywhere}}
.badge{{display:inline-block;font-size:.78rem;font-weight:650;border:1px solid currentColor;border-radius:99px;padding:0 .55rem;margin-right:.5rem;vertical-align:.1rem}}
.plane{{margin-top:.7rem}}.tiles{{display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));gap:.4rem;margin-top:.25rem}}
.frame{{position:relative;background:#000;border-radius:6px;overflow:hidden}}.frame img{{display:block;width:100%;height:auto}}
.frame svg{{position:absolute;inset:0;width:100%;height:100%;fill:none}}.frame path{{vector-effect:non-scaling-stroke;stroke-width:1.4}}
.tile figcaption{{text-align:center;line-height:1.25;margin-top:.2rem;font-size:.82rem}}.tile.main figcaption{{color:var(--ink);font-weight:600}}
@media (max-width:720px){{.tiles{{grid-template-columns:repeat(3,minmax(0,1fr))}}.tile.main{{order:-1}}}}
.ramp{{display:inline-block;width:5rem;height:.8rem;border-radius:3px;vertical-align:-.05rem;margin:0 .4rem;background:linear-gradient(90deg,#00f,#fff,#f00)}}
.toggle{{display:inline-flex;gap:.45rem;align-items:center;font-size:.92rem;cursor:pointer;padding:.25rem 0}}
body:has(#outlines:not(:checked)) .frame svg{{display:none}}
.wide img{{display:block;width:100%;min-width:40rem;height:auto;border-radius:6px}}
details{{margin:.7rem 0}}summary{{cursor:pointer;font-weight:600;padding:.2rem 0}}
pre,code{{font:0.85rem/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}}
pre{{overflow-x:auto;background:var(--page);border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;margin:.5rem 0}}code{{overflow-wrap:anywhere}}
#theme{{position:absolute;right:clamp(1rem,3vw,2rem);top:1.8rem;width:2.3rem;height:2.3rem;border-radius:50%;border:1px solid var(--line);
background:var(--card);color:var(--ink);cursor:pointer;font-size:1rem;padding:0}}
footer{{color:var(--muted);font-size:.88rem;padding-top:.5rem;padding-bottom:2.5rem}}
@media print{{nav,#theme{{display:none}}section{{break-inside:auto;border:0;padding:0}}}}
"""

SCRIPT = (
    "document.getElementById('theme').onclick=function(){var r=document.documentElement,"
    "d=r.dataset.theme||(matchMedia('(prefers-color-scheme:dark)').matches?'dark':'light');"
    "r.dataset.theme=d==='dark'?'light':'dark'}"
)
"""Changes the theme by hand; the page is whole without it."""
