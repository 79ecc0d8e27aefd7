"""A headless Chromium, spoken to by its own protocol: what is needed to use a page as a person does."""
import base64, json, shutil, subprocess, time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)

class Gone(Exception):
    "The page went while it was asked: it loads anew."

class Browser:
    "One page. `run(js)` gives the value of an expression (a promise is waited for)."
    def __init__(self, folder: Path, url: str, width=1200, height=800, dark=False):
        import websocket
        self.home, self.downloads, self.count = folder/'profile', folder/'saved', 0
        self.downloads.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-extensions',
             '--disable-background-networking', '--remote-debugging-port=0', '--remote-allow-origins=*', f'--user-data-dir={self.home}', 'about:blank'],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self.home/'DevToolsActivePort'
        self.until(lambda: port.is_file() and port.read_text().count('\n') >= 1, 60)
        self.socket = websocket.create_connection('ws://127.0.0.1:{}{}'.format(*port.read_text().split('\n')[:2]), timeout=60)
        self.session = None
        target = self.until(lambda: [t for t in self('Target.getTargets')['targetInfos'] if t['type'] == 'page'], 30)[0]
        self.session = self('Target.attachToTarget', targetId=target['targetId'], flatten=True)['sessionId']
        self.browser('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(self.downloads))
        for domain in ('Page', 'Runtime', 'Network'): self(f'{domain}.enable')
        self.said, self.asked = [], []          # dialogs and errors; addresses that were asked for
        self.size(width, height, dark)
        self.open(url)

    def until(self, f, seconds=20):
        "Wait until `f()` holds; a page that loads anew meanwhile is asked again."
        end = time.monotonic() + seconds
        while True:
            try:
                if found := f(): return found
            except Gone: pass
            assert time.monotonic() < end, 'the page did not get there'
            time.sleep(.02)

    def __call__(self, method, **params): return self.send(method, params, self.session)
    def browser(self, method, **params): return self.send(method, params, None)

    def send(self, method, params, session):
        self.count += 1
        self.socket.send(json.dumps(dict(id=self.count, method=method, params=params) | (dict(sessionId=session) if session else {})))
        return self.hear(self.count)

    def hear(self, number):
        while True:
            m = json.loads(self.socket.recv())
            if m.get('id') == number:
                said = m.get('error', {}).get('message', '')
                if any(w in said for w in ('navigated or closed', 'context was destroyed', 'Cannot find context')): raise Gone(said)
                assert 'error' not in m, m['error']
                return m['result']
            p = m.get('params', {})
            if m.get('method') == 'Page.javascriptDialogOpening':
                self.said.append(p['message'])
                self.count += 1         # its answer is heard and passed over
                self.socket.send(json.dumps(dict(id=self.count, sessionId=self.session, method='Page.handleJavaScriptDialog', params=dict(accept=True))))
            if m.get('method') == 'Runtime.exceptionThrown': self.said.append(p['exceptionDetails'].get('exception', {}).get('description', 'error'))
            if m.get('method') == 'Network.requestWillBeSent': self.asked.append(p['request']['url'])

    def size(self, width, height, dark=False):
        self('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value='dark' if dark else 'light')])

    def open(self, url):
        self('Page.navigate', url=url)
        self.until(lambda: self.run('document.readyState') == 'complete' and self.run('location.href') == url)

    def reload(self):
        self.run('window.old = 1')
        self('Page.reload')
        self.until(lambda: self.run('document.readyState === "complete" && !window.old'))

    def run(self, js):
        r = self('Runtime.evaluate', expression=js, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in r, r['exceptionDetails']
        return r['result'].get('value')

    def press(self, key):
        for kind in ('keyDown', 'keyUp'): self('Input.dispatchKeyEvent', type=kind, key=key, text=key if kind == 'keyDown' and len(key) == 1 else '')

    def click(self, css):
        "A real click in the middle of an element."
        x, y = self.run(f'(e => {{ e.scrollIntoView({{block: "nearest"}}); const b = e.getBoundingClientRect();'
                        f' return [b.x + b.width/2, b.y + b.height/2] }})(document.querySelector({css!r}))')
        for kind in ('mousePressed', 'mouseReleased'): self('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

    def picture(self, file):
        Path(file).write_bytes(base64.b64decode(self('Page.captureScreenshot', format='png')['data']))

    def close(self):
        try: self.browser('Browser.close')
        except Exception: self.process.kill()       # it closed before it answered
        self.socket.close()
        try: self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
