"""Links of the built site. nbdev writes them for the host in settings.ini, where nothing is online: here they lead from page to page of the folder."""
import os, re, shutil
from pathlib import Path

ATTRIBUTE = re.compile(r'\b(href|src)="([^"]*)"')
TAG = re.compile(r'<[a-zA-Z][^<>]*>')                        # what stands in the text of a page, such as source, is no link
ELSEWHERE = re.compile(r'(?:[a-z][a-z+.-]*:|//)', re.I)      # http:, mailto:, data:, ...
CODE = 'code'                                               # the folder of the site with the source of the modules

class Pages:
    "The pages of a site, and the anchors that each has."
    def __init__(self, site):
        self.site, self._anchors = Path(site), {}
        self.all = sorted(self.site.rglob('*.html'))

    def anchors(self, page):
        if page not in self._anchors:
            text = page.read_text(encoding='utf-8')
            self._anchors[page] = set(re.findall(r'\bid="([^"]+)"', text)) | set(re.findall(r'\bname="([^"]+)"', text))
        return self._anchors[page]

    def anchor(self, page, wanted):
        "The anchor, or the nearest that the page has: of a method its class, else the top."
        while wanted and wanted not in self.anchors(page): wanted = wanted.rpartition('.')[0]
        return wanted

def target(url, base, git):
    "The file and the anchor in the site that an address of the host stands for; None for an address of elsewhere."
    blob = re.escape(git) + r'/(?:blob|tree)/[^/]+/'
    if m := re.match(blob, url):
        path, _, anchor = url[m.end():].partition('#')
        return f'{CODE}/{os.path.splitext(path)[0]}.html', anchor
    if url.rstrip('/') in (base, git): return 'index.html', ''
    if url.startswith(base + '/'):
        path, _, anchor = url[len(base) + 1:].partition('#')
        return path or 'index.html', anchor

def relative(site, base, git):
    "Lead every link to the host to the page of the site that it stands for."
    pages = Pages(site)
    for page in pages.all:
        def local(m, page=page):
            found = target(m[2], base, git)
            if not found or not (pages.site/found[0]).is_file(): return m[0]
            file, anchor = pages.site/found[0], found[1]
            if file.suffix == '.html': anchor = pages.anchor(file, anchor)
            path = '' if file == page and anchor else os.path.relpath(file, page.parent)
            return f'{m[1]}="{path}{"#" + anchor if anchor else ""}"'
        old = page.read_text(encoding='utf-8')
        new = ATTRIBUTE.sub(local, old)
        if new != old: page.write_text(new, encoding='utf-8')

def local_katex(site, katex):
    "Serve the maths from the site itself."
    katex, home = Path(katex), Path(site)/'site_libs/katex'
    for f in ('katex.min.css', 'katex.min.js', 'contrib/auto-render.min.js', *(f'fonts/{p.name}' for p in sorted((katex/'fonts').glob('*.woff2')))):
        (home/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(katex/f, home/f)
    for f in Path(site).rglob('*.html'):
        up = '../'*(len(f.relative_to(site).parts) - 1)
        old = f.read_text(encoding='utf-8')
        new = re.sub(r'https://[\w./-]+/katex@[\d.]+/dist', f'{up}site_libs/katex', old)
        if new != old: f.write_text(new, encoding='utf-8')

def broken(site, host):
    "What is wrong with the links of a site, as lines: links to the host, to files or anchors that are not there, scripts and styles from elsewhere."
    pages, wrong = Pages(site), []
    for page in pages.all:
        name = page.relative_to(pages.site).as_posix()
        text = re.sub(r'(<(script|style)\b[^>]*>).*?</\2>', r'\1', page.read_text(encoding='utf-8'), flags=re.S)
        for tag, url in (found for t in TAG.findall(text) for found in ATTRIBUTE.findall(t)):
            if host and host in url: wrong.append(f'{name}: {url} leads to the placeholder host')
            elif ELSEWHERE.match(url):
                if tag == 'src' and not url.startswith('data:'): wrong.append(f'{name}: {url} is fetched from elsewhere')
            elif url.startswith('/'): wrong.append(f'{name}: {url} starts at the root of a server')
            else:
                path, _, anchor = url.partition('#')
                file = Path(os.path.normpath(page.parent/path.split('?')[0])) if path else page
                if file.is_dir(): file = file/'index.html'
                if not file.is_file(): wrong.append(f'{name}: {url} is not there')
                elif anchor and file.suffix == '.html' and anchor not in pages.anchors(file): wrong.append(f'{name}: {url} has no such anchor')
    return wrong
