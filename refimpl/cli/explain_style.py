"""The style sheet of the pages of `refimpl tokenize --html`: light and dark, wide and narrow, screen and paper."""

from __future__ import annotations

STYLE = """
:root{--ink:#1d2328;--soft:#5b6670;--line:#dde2e6;--page:#fbfbfa;--card:#fff;--link:#0b5cad;--won:#0f6b3c;
--wonbg:#e2f5e9;--mark:#ffe9a8;--note:#fff4d6;--c0:#dcebff;--c1:#ffe3d3;--c2:#dff5dc;--c3:#f0e1fb;--c4:#fff0c2}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa6b1;--line:#333c44;--page:#14181b;--card:#1b2024;
--link:#86bcff;--won:#8be0af;--wonbg:#17392a;--mark:#5b4a10;--note:#3b3212;--c0:#1e3a5c;--c1:#57301a;--c2:#1f4522;
--c3:#43285a;--c4:#4a3d12}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1.5rem clamp(1rem,4vw,2.5rem) 3rem;background:var(--page);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI","Noto Sans JP","Hiragino Sans","Yu Gothic UI",sans-serif}
code,.id,.n,.steps>tbody>tr>th{
font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace,"Noto Sans JP";
font-size:.94em;font-variant-numeric:tabular-nums}
code{overflow-wrap:anywhere;white-space:pre-wrap}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .8rem}
h2{font-size:1.15rem;margin:2.2rem 0 .7rem}
a{color:var(--link)}
.facts{display:flex;flex-wrap:wrap;gap:.6rem 2rem;margin:0}
.facts dt{color:var(--soft);font-size:.85rem}
.facts dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums}
.note{background:var(--note);border-radius:.5rem;padding:.7rem 1rem;margin:1.5rem 0 0}
.chips{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem;margin:0;line-height:2.15;
font-size:1.06rem;max-height:24rem;overflow:auto}
.chips:empty::after{content:"The text is empty."}
.chips a{color:inherit;text-decoration:none;border-radius:.3rem;padding:.2rem .22rem;margin:0 1px;white-space:nowrap}
.chips a:hover,.chips a:focus-visible{outline:2px solid var(--link)}
.chips small{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.78em}
.c0{background:var(--c0)}.c1{background:var(--c1)}.c2{background:var(--c2)}.c3{background:var(--c3)}.c4{background:var(--c4)}
.wide{overflow-x:auto}
table{border-collapse:collapse}
.small th,.small td{padding:.25rem .9rem .25rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}
.small th{color:var(--soft);font-weight:500;font-size:.85rem}
.small .n{text-align:right}
.small th.n{font-family:inherit}
.cp{color:var(--soft);white-space:nowrap}
fieldset{border:0;margin:0 0 .8rem;padding:0;display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.92rem}
legend{float:left;color:var(--soft);padding:0;margin-right:1.1rem}
fieldset b{font-weight:600;color:var(--soft);font-variant-numeric:tabular-nums}
fieldset input{accent-color:var(--link)}
.steps{width:100%;table-layout:fixed;background:var(--card);border:1px solid var(--line);border-radius:.6rem;
border-collapse:separate;border-spacing:0}
.steps>thead th{position:sticky;top:0;background:var(--card);color:var(--soft);font-weight:500;font-size:.85rem;
text-align:left;padding:.6rem .8rem;border-bottom:1px solid var(--line);z-index:1}
.steps>thead th:first-child{border-top-left-radius:.6rem}
.steps>thead th:last-child{border-top-right-radius:.6rem}
.steps>tbody>tr>*{padding:.5rem .8rem;vertical-align:top;border-top:1px solid var(--line)}
.steps>tbody>tr:first-child>*{border-top:0}
.steps>tbody>tr>th{color:var(--soft);font-weight:400;text-align:right}
.steps>thead th:first-child{text-align:right;width:4.4rem}
.steps>thead th:nth-child(2){width:19%}
.steps>thead th:nth-child(3){width:25%}
.steps>tbody>tr:target{background:var(--note)}
.tokens{list-style:none;margin:0;padding:0}
.id{color:var(--soft)}
.tokens .id{display:inline-block;min-width:3.6em;text-align:right;margin-right:.4em}
.to{color:var(--soft)}
.candidates{list-style:none;margin:.35rem 0 0;padding:0;display:flex;flex-wrap:wrap;gap:.35rem}
.candidates li{border:1px solid var(--line);border-radius:1rem;padding:0 .65rem}
.candidates .won{background:var(--wonbg);border-color:transparent;font-weight:600}
.candidates .won,.candidates .won .id{color:var(--won)}
.candidates .won::before{content:"✓ "}
details{margin-top:.25rem}
summary{cursor:pointer;color:var(--link)}
.wide td,.wide th{white-space:nowrap}
.wide code{white-space:pre}
mark{background:var(--mark);color:inherit;border-radius:.2rem;padding:0 .12rem}
footer{margin-top:2.5rem;color:var(--soft);font-size:.9rem;max-width:46rem}
@media (max-width:44rem){
.steps,.steps>tbody{display:block}
.steps>thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.steps>tbody>tr{display:grid;grid-template-columns:3.2rem minmax(0,1fr);padding:.55rem .8rem .55rem .3rem;
border-top:1px solid var(--line)}
.steps>tbody>tr:first-child{border-top:0}
.steps>tbody>tr>*{border:0;padding:.1rem .3rem;width:auto;grid-column:2}
.steps>tbody>tr>th{grid-column:1;grid-row:1/4;width:auto}
.tokens .id{min-width:0}
}
@media print{.chips{max-height:none}fieldset{display:none}.steps>thead th{position:static}}
"""
