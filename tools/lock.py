"Resolve requirements.in to exact versions and write requirements.txt; installs nothing."
import json, re, subprocess, sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
HEAD = '''# The lock: every package of the environment, exactly. Made from requirements.in by `make lock`; installed by `make` with --no-deps.
# Versions carry no build label (+cpu, +cu126): the machine serves its own build of torch, and `make` adds what that build asks for.
'''

DATA = '# Installed for the files'     # what follows in requirements.in goes into the lock without what it asks for

def main():
    asked, _, data = (HERE/'requirements.in').read_text(encoding='utf-8').partition(DATA)
    cmd = [sys.executable, '-m', 'pip', 'install', '--dry-run', '--ignore-installed', '--quiet', '--report', '-', '-r', '/dev/stdin']
    out = subprocess.run(cmd, cwd=HERE, input=asked, stdout=subprocess.PIPE, text=True, check=False)
    if out.returncode: sys.exit('requirements.in could not be resolved (pip said why above); requirements.txt is unchanged.')
    pins = {i['metadata']['name']: i['metadata']['version'].split('+')[0] for i in json.loads(out.stdout)['install']}
    pins |= dict(re.findall(r'^([\w.-]+)==(\S+)$', data, re.M))
    cuda = [n for n in pins if re.match(r'(nvidia|cuda|triton)', n)]    # a GPU build's own needs are no part of the lock
    text = HEAD + ''.join(f'{n}=={v}\n' for n, v in sorted(pins.items(), key=lambda x: x[0].lower()) if n not in cuda)
    (HERE/'requirements.txt').write_text(text, encoding='utf-8')
    print(f'requirements.txt: {len(pins) - len(cuda)} packages')

if __name__ == '__main__': main()
