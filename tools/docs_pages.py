"""What the pages of the site are made of, before anything is rendered: groups, folded checks, the source of the modules, the fields of records."""
import ast, os, re, shutil
from importlib import import_module

from nbdev.doclinks import NbdevLookup
from nbdev.showdoc import BasicMarkdownRenderer

from docs_links import CODE

# ------------------------------------------------------------------ groups
GROUPS = {      # what a reader wants -> its notebooks, or sections with notebooks of their own
    'Tutorial': ['000_tour'],
    'How to': ['howto/*'],
    'Explanation': {
        'How a model is customized': ['training/*'],
        'How change is measured': ['metrics/*'],
    },
    'Reference': {
        'Pages and settings': ['reference/*', 'contributing', 'outputs'],
        'Ground': ['00_core', '01_source', '02_show', '03_start', '04_batches', '05_options'],
        'Worlds': ['worlds/*'],
        'Studies': ['study/*'],
        'Audits': ['audit/*'],
        'The making of the mini world': ['mini/0[0-57]*'],
    },
    'Results': ['answers/*', 'reports/*', 'mini/06_card', 'weights'],
}

TEXTS = {'outputs.md': 'What lies in outputs/', 'weights.md': 'The model card itself'}

def sidebar(nbs):
    "The sidebar: every page of the site in one group. A page in none, or in two, is an error."
    pages = {p.relative_to(nbs).as_posix(): p for p in nbs.rglob('*') if p.suffix in ('.ipynb', '.md') and not hidden(p.relative_to(nbs))}
    left = [n for n in pages if n != 'index.ipynb' and not n.startswith(f'{CODE}/')]
    def files(patterns):
        out = []
        for p in patterns:
            found = sorted(f.relative_to(nbs).as_posix() for e in ('.ipynb', '.md') for f in nbs.glob(p + e))
            for f in found: left.remove(f)
            out += [{'text': TEXTS[f], 'href': f} if f in TEXTS else f for f in found]
        return out
    def contents(g): return files(g) if isinstance(g, list) else [{'section': n, 'contents': c} for n, x in g.items() if (c := files(x))]
    sections = [{'section': n, 'contents': c} for n, g in GROUPS.items() if (c := contents(g))]
    if left: raise SystemExit(f'These pages are in no group of the documentation: {left}. Add them to GROUPS in tools/docs_pages.py.')
    return {'website': {'sidebar': {'contents': ['index.ipynb', *sections]}}}

def hidden(path): return any(part[0] in '._' for part in path.parts)

# ------------------------------------------------------------------ checks are folded away
def is_check(s):
    "Whether a statement checks something: an assertion, a `test_*` call, an error that is shown, or a loop over such."
    if isinstance(s, ast.Assert): return True
    if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call): return ast.unparse(s.value.func).rpartition('.')[2].startswith('test_')
    return isinstance(s, ast.Try | ast.For | ast.With) and any(map(is_check, s.body))

def mostly_checks(source):
    "Whether at least half of a cell's statements check something."
    try: body = ast.parse(re.sub(r'^\s*[%!].*', '', source, flags=re.M)).body
    except SyntaxError: return False
    return bool(body) and 2*sum(map(is_check, body)) >= len(body)

def fold_checks(nb):
    "Fold the cells of a notebook that mostly check: what they print stays, the code opens with a click."
    for c in nb['cells']:
        s = c['source'] = ''.join(c['source'])
        if c['cell_type'] == 'code' and not re.search(r'^#\|\s*(export|hide|echo|code-fold)', s, re.M) and mostly_checks(s):
            c['source'] = '#| code-fold: true\n#| code-summary: "Checks"\n' + s
    return nb

# ------------------------------------------------------------------ other files of the project that become pages
DOCUMENTS = {'CONTRIBUTING.md': 'contributing.md', 'outputs/README.md': 'outputs.md', 'weights/README.md': 'weights.md', 'weights/contact.png': 'contact.png'}
SOURCES = ('openworld_forget/**/*.py', 'studies/*.yaml', 'tools/*.py', 'benchmarks/*.py', 'CITATION.cff')

def sources(root):
    "Files of the project that are shown as source: path -> page."
    paths = [f.relative_to(root).as_posix() for g in SOURCES for f in sorted(root.glob(g)) if f.stem != '_modidx']
    return {p: f'{CODE}/{os.path.splitext(p)[0]}.md' for p in paths}

def follow(text, old, new, pages):
    "A text's links to files of the project, from where it lay (`old`) to where the files are in the site, seen from `new`."
    def there(m):
        path = os.path.normpath(os.path.join(os.path.dirname(old), m[2]))
        path = path[4:] if path.startswith('nbs/') else pages.get(path)
        return f'{m[1]}({os.path.relpath(path, os.path.dirname(new) or ".")}{m[3] or ""})' if path else m[0]
    return re.sub(r'(\[[^\]\n]*\])\(([\w./-]+)(#[^)\s]*)?\)', there, text)

def add_documents(root, nbs):
    "Put the project's other documents beside the notebooks, and lead the links of all to them."
    pages = {**DOCUMENTS, **sources(root)}
    for old, new in DOCUMENTS.items():
        if not (root/old).exists(): continue
        if new.endswith('.md'): (nbs/new).write_text(follow((root/old).read_text(encoding='utf-8'), old, new, pages), encoding='utf-8')
        else: shutil.copy2(root/old, nbs/new)
    for old, new in sources(root).items():
        (nbs/new).parent.mkdir(parents=True, exist_ok=True)
        (nbs/new).write_text(source_page(root, old, new), encoding='utf-8')
    return pages

def source_page(root, path, page):
    "A source file as a page: one anchor a line (`#L24`), and the way back to the notebook that it was exported from."
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    text = (root/path).read_text(encoding='utf-8')
    lexer = get_lexer_by_name('python' if path.endswith('.py') else 'yaml', stripnl=False)
    lines = highlight(text, lexer, HtmlFormatter(nowrap=True, noclasses=True, style='xcode')).splitlines()
    body = '\n'.join(f'<span id="L{i}" class="line"><a href="#L{i}">{i:>4}</a> {line}</span>' for i, line in enumerate(lines, 1))
    said = f'`{path}` of the project.'
    if made := re.search(r'File to edit: (\S+\.ipynb)', text):
        notebook = os.path.normpath(os.path.join(os.path.dirname(path), made[1]))
        back = os.path.relpath(notebook.removeprefix('nbs/'), os.path.dirname(page))
        if (root/notebook).exists(): said = f'What [the notebook]({back}) exports.'
    return f'---\ntitle: "{path}"\nsearch: false\ntoc: false\n---\n\n{said}\n\n```{{=html}}\n<pre class="source">{body}</pre>\n```\n'

# ------------------------------------------------------------------ show_doc
def in_module(sym, code):
    "The counterpart in the package of what a notebook's cell defined, by the address of its source: only that has a file with comments."
    if not (m := re.search(r'/(openworld_forget/[\w/]+)\.py', code or '')): return sym
    return getattr(import_module(m[1].replace('/', '.')), sym.__name__, sym)

class Renderer(BasicMarkdownRenderer):
    "nbdev's `show_doc`, with the fields of a record as a table."
    def _repr_markdown_(self):
        from openworld_forget.core import Record
        from openworld_forget.show import field_table
        text = super()._repr_markdown_()
        if not (isinstance(self.sym, type) and issubclass(self.sym, Record) and self.sym is not Record): return text
        table = field_table(in_module(self.sym, NbdevLookup().code(self.fn)))
        head, _, rest = text.partition('```python\n')
        return f'{head}```python\nclass {self.nm}(Record)\n```{rest.partition("```")[2]}\n\n{table}\n'
