"""Pictures and folders as people have them: the right values come out, or one `ForgetError` says which file, why, and what to do. The inputs are made
here, byte by byte where no library writes them."""
import io, struct, threading, zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from openworld_forget.worlds import pictures
from openworld_forget.worlds.data import Benchmark, Subject, check_class_word, read_class_word
from openworld_forget.worlds.folders import benchmark, benchmark_files, benchmarks, check_data, subject, subjects
from openworld_forget.worlds.pictures import load_image, load_images, picture_files
from openworld_forget.core import ForgetError, shared_cache
from openworld_forget.worlds.world import WorldSpec, spec_of

GREY = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
RGB = np.stack([GREY, GREY[::-1], GREY.T], 2)
RGBA = np.concatenate([RGB, np.full_like(GREY, 65535)[..., None]], 2)
EIGHT = np.uint8(GREY*(255/65535) + .5)

def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

def png(a, color, *extra):
    "A PNG of 16 bits a channel."
    rows = b''.join(b'\0' + r.astype('>u2').tobytes() for r in a)
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 16, color, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + b''.join(extra) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')

def tiff(a, photo=1, kind=1, order='<', bits=None, width=None, more=()):
    "A TIFF of one strip: photometric interpretation, sample format (1 unsigned, 2 signed, 3 float), byte order."
    n = 1 if a.ndim == 2 else a.shape[2]
    data = a.astype(a.dtype.newbyteorder(order)).tobytes()
    tags = {256: (4, [width or a.shape[1]]), 257: (4, [a.shape[0]]), 258: (3, [bits or 8*a.dtype.itemsize]*n), 259: (3, [1]), 262: (3, [photo]),
            273: (4, [8]), 277: (3, [n]), 278: (4, [a.shape[0]]), 279: (4, [len(data)]), 339: (3, [kind]*n), **dict(more)}
    at, out, tail = 8 + len(data) + len(data) % 2, struct.pack(order + 'H', len(tags)), b''
    for t, (type_, v) in sorted(tags.items()):
        b = struct.pack(f'{order}{len(v)}{ {1: "B", 3: "H", 4: "I"}[type_] }', *v)
        where = b.ljust(4, b'\0') if len(b) <= 4 else struct.pack(order + 'I', at + 6 + 12*len(tags) + len(tail))
        tail += b if len(b) > 4 else b''
        out += struct.pack(order + 'HHI', t, type_, len(v)) + where
    return {'<': b'II*\0', '>': b'MM\0*'}[order] + struct.pack(order + 'I', at) + data + b'\0'*(len(data) % 2) + out + bytes(4) + tail

def read(tmp_path, data, name='x.png', size=16):
    (tmp_path/name).write_bytes(data)
    return load_image(tmp_path/name, size).numpy()

def refused(f, *says):
    with pytest.raises(ForgetError) as e: f()
    for s in says: assert s in str(e.value), str(e.value)
    return str(e.value)

# ---------------------------------------------------------------- depth
SIXTEEN = {
    'png': png(GREY, 0), 'tiff, little endian': tiff(GREY), 'tiff, big endian': tiff(GREY, order='>'),
    'pgm': b'P5 16 16 65535\n' + GREY.astype('>u2').tobytes(),
    **{f'tiff {c}': (c, i) for c in ('tiff_lzw', 'tiff_adobe_deflate', 'packbits') for i in ('I;16',)}, 'jpeg2000': ('jp2', 'I;16')}

@pytest.mark.parametrize('kind', SIXTEEN)
def test_grey_of_16_bits_is_divided_by_its_white(tmp_path, kind):
    data = SIXTEEN[kind]
    if isinstance(data, tuple):
        b = io.BytesIO()
        Image.fromarray(GREY).save(b, 'JPEG2000') if data[0] == 'jp2' else Image.fromarray(GREY).save(b, 'TIFF', compression=data[0])
        data = b.getvalue()
    x = read(tmp_path, data)
    assert (x == EIGHT).all()

def test_white_is_zero_and_twelve_bits(tmp_path):
    "A TIFF may count from white to black; 12 bits end at 4095."
    assert (read(tmp_path, tiff(GREY, photo=0), 'w.tif') == 255 - EIGHT.astype(int)).all()
    twelve = np.packbits(np.unpackbits((GREY >> 4).astype('>u2').view(np.uint8)).reshape(16, 16, 16)[..., 4:].reshape(16, -1), axis=1)
    assert np.abs(read(tmp_path, tiff(twelve, bits=12, width=16), 't.tif') - EIGHT.astype(int)).max() <= 1
    assert (read(tmp_path, tiff(np.uint8(GREY >> 8), photo=0), 'e.tif')[0] == 255 - (GREY >> 8)).all()

@pytest.mark.parametrize('order', '<>')
def test_colour_of_16_bits(tmp_path, order):
    "Within one step of 8 bits; opaque alpha changes nothing."
    want = RGB.transpose(2, 0, 1)/257
    for data in (png(RGB, 2), png(RGBA, 6), tiff(RGB, 2, order=order), tiff(RGBA, 2, order=order, more={338: (3, [2])}.items())):
        assert np.abs(read(tmp_path, data) - want).max() < 1

def test_twelve_bits_in_sixteen(tmp_path):
    "The white of a camera of 12 bits; the brightest value of one picture is no white."
    a = (GREY >> 4).astype(np.uint16)
    assert np.abs(read(tmp_path, tiff(a, more={281: (3, [4095])}), 'x.tif')[0].astype(int) - EIGHT).max() <= 1
    assert np.array_equal(read(tmp_path, tiff(GREY, more={281: (3, [60000])}), 'x.tif')[0], EIGHT)
    refused(lambda: read(tmp_path, tiff(np.stack([a]*3, 2), photo=2, more={281: (3, [4095]*3)}), 'x.tif'), 'white is 4095')

def test_one_transparent_value_of_16_bits(tmp_path):
    "`tRNS` names one grey, or one colour, as transparent: it shows white, its neighbours do not."
    x = read(tmp_path, png(GREY, 0, chunk(b'tRNS', struct.pack('>H', int(GREY[3, 5])))))
    want = EIGHT.copy()
    want[3, 5] = 255
    assert (x == want).all()
    a = np.full((16, 16, 3), 4660, np.uint16)                              # 0x1234: its low byte is not its high byte
    a[0, 0] = 1000
    x = read(tmp_path, png(a, 2, chunk(b'tRNS', struct.pack('>HHH', 4660, 4660, 4660))))
    assert (x[:, 0, 0] == 3).all() and (x[:, 1:] == 255).all()

@pytest.mark.parametrize('data, says', [
    (tiff(GREY.astype(np.uint32)), '32-bit'), (tiff(GREY.astype(np.int32), kind=2), 'signed'), (tiff(GREY.astype(np.int16), kind=2), 'signed'),
    (tiff((GREY >> 8).astype(np.int8), kind=2), 'signed'), (tiff(GREY.astype(np.float32), kind=3), 'float'), (tiff(GREY.astype(np.float64), kind=3), 'float'),
    (tiff(RGB.astype(np.float32), 2, 3), '3 x 32-bit float'), (tiff(GREY.astype(np.float32)/65535, kind=3, order='>'), 'float'),
    (b'Pf\n16 16\n-1.0\n' + GREY.astype('<f4').tobytes(), 'float'), (tiff(RGBA[..., :2], more={338: (3, [2])}.items()), '2 x 16-bit')])
def test_numbers_without_a_white_are_refused(tmp_path, data, says): refused(lambda: read(tmp_path, data), 'x.png', says, '8-bit PNG or JPEG')

def test_dark_photographs_stay_dark(tmp_path):
    "No stretching to what a picture happens to hold."
    assert (read(tmp_path, png(np.full((16, 16), 2570, np.uint16), 0)) == 10).all()

# ---------------------------------------------------------------- modes, transparency, colour
COLOUR = (200, 100, 50)
MODES = [('RGB', 'png'), ('RGBA', 'png'), ('P', 'png'), ('PA', 'tiff'), ('CMYK', 'jpeg'), ('CMYK', 'tiff'), ('YCbCr', 'tiff'), ('YCbCr', 'jpeg'),
         ('LAB', 'tiff'), ('RGB', 'gif'), ('RGB', 'webp'), ('RGB', 'bmp'), ('RGB', 'avif'), ('RGB', 'jpeg2000'), ('RGB', 'ppm'), ('RGBa', 'avif')]
@pytest.mark.parametrize('mode, kind', MODES)
def test_every_colour_mode_gives_the_colour(tmp_path, mode, kind):
    b, im = io.BytesIO(), Image.new('RGB', (16, 16), COLOUR)
    im = {'PA': lambda: im.quantize(4).convert('PA'), 'RGBa': lambda: im.convert('RGBA').convert('RGBa'), 'P': lambda: im.quantize(4)}.get(
        mode, lambda: im.convert(mode))()
    im.save(b, kind)
    if mode in ('PA', 'LAB') and kind == 'tiff': assert Image.open(io.BytesIO(b.getvalue())).mode == mode
    assert np.abs(read(tmp_path, b.getvalue()).mean((1, 2)) - COLOUR).max() < 4

@pytest.mark.parametrize('mode', ['1', 'L', 'LA'])
def test_black_and_white(tmp_path, mode):
    im = Image.new('L', (16, 16), 255)
    im.paste(0, (0, 0, 8, 16))
    im.convert(mode).save(tmp_path/'x.png')
    x = load_image(tmp_path/'x.png', 16).numpy()
    assert (x[:, :, :8] == 0).all() and (x[:, :, 8:] == 255).all()

def test_what_is_transparent_shows_white(tmp_path):
    "Half transparent red is pink: by alpha, by premultiplied alpha, and by a palette."
    half = np.tile(np.uint8([255, 0, 0, 128]), (16, 16, 1))
    Image.fromarray(half).save(tmp_path/'a.png')
    multiplied = np.tile(np.uint8([128, 0, 0, 128]), (16, 16, 1))
    (tmp_path/'b.tif').write_bytes(tiff(multiplied, 2, more={338: (3, [1])}.items()))
    p = Image.new('P', (16, 16), 1)
    p.putpalette([0, 0, 0, 255, 0, 0])
    p.save(tmp_path/'c.png', transparency=bytes([255, 128]))
    for n in ('a.png', 'b.tif', 'c.png'): assert np.abs(load_image(tmp_path/n, 16).numpy().mean((1, 2)) - [255, 127, 127]).max() <= 1, n
    (tmp_path/'d.tif').write_bytes(tiff(np.tile(np.uint8([64, 128]), (16, 16, 1)), more={338: (3, [1])}.items()))        # grey 128 at half
    assert Image.open(tmp_path/'d.tif').mode == 'La' and np.abs(load_image(tmp_path/'d.tif', 16).numpy().astype(int) - 191).max() <= 1
    g = Image.new('P', (16, 16), 0)
    g.putpalette([9, 9, 9, 200, 100, 50])
    g.save(tmp_path/'e.gif', transparency=0)
    assert (load_image(tmp_path/'e.gif', 16) == 255).all()

def icc(primaries, gamma, space=b'RGB ', name='A test profile'):
    "A matrix profile (or a grey one) with D50 primaries [3, 3] (XYZ of red, green, blue) and one gamma."
    xyz = lambda v: b'XYZ ' + bytes(4) + b''.join(struct.pack('>i', round(c*65536)) for c in v)
    curve = b'curv' + bytes(4) + struct.pack('>IH', 1, round(gamma*256)) + bytes(2)
    text = name.encode() + b'\0'
    desc = b'desc' + bytes(4) + struct.pack('>I', len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b'desc': desc + bytes(-len(desc) % 4), b'wtpt': xyz((.9642, 1, .8249)), b'cprt': b'text' + bytes(4) + b'none'}
    tags |= {b'kTRC': curve} if space == b'GRAY' else {c + b'TRC': curve for c in (b'r', b'g', b'b')} | {
        c + b'XYZ': xyz(v) for c, v in zip((b'r', b'g', b'b'), primaries)}
    at, table, body = 128 + 4 + 12*len(tags), struct.pack('>I', len(tags)), b''
    for k, v in tags.items(): table, body = table + k + struct.pack('>II', at + len(body), len(v)), body + v
    head = struct.pack('>I', at + len(body)) + bytes(4) + struct.pack('>I', 0x02100000) + b'mntr' + space + b'XYZ ' + bytes(12) + b'acsp' + bytes(28)
    return head + struct.pack('>iii', 63190, 65536, 54061) + bytes(48) + table + body

ADOBE = np.array([(.60974, .31111, .01947), (.20528, .62567, .06087), (.14919, .06322, .74457)])
SRGB = np.array([(.43607, .22249, .01392), (.38515, .71687, .09708), (.14307, .06061, .71410)])
def adobe_to_srgb(v):
    lin = np.linalg.solve(SRGB.T, ADOBE.T @ (np.array(v)/255)**(563/256))
    return 255*np.where(lin < .0031308, 12.92*lin, 1.055*np.clip(lin, 0, None)**(1/2.4) - .055)

@pytest.mark.parametrize('color', [(120, 150, 100), (60, 60, 160), (128, 128, 128), (180, 120, 90)])
def test_colours_of_a_profile_become_srgb(tmp_path, color):
    "Adobe RGB against the formula; transparency survives."
    Image.new('RGB', (16, 16), color).save(tmp_path/'a.png', icc_profile=icc(ADOBE, 563/256))
    assert np.abs(load_image(tmp_path/'a.png', 16).numpy().mean((1, 2)) - adobe_to_srgb(color)).max() < 2.5
    Image.new('RGBA', (16, 16), (*color, 0)).save(tmp_path/'b.png', icc_profile=icc(ADOBE, 563/256))
    assert (load_image(tmp_path/'b.png', 16) == 255).all()
    Image.new('RGB', (16, 16), color).save(tmp_path/'c.jpg', quality=100, subsampling=0, icc_profile=icc(ADOBE, 563/256))
    assert np.abs(load_image(tmp_path/'c.jpg', 16).numpy().mean((1, 2)) - adobe_to_srgb(color)).max() < 4

def test_other_profiles(tmp_path, capsys):
    "sRGB itself changes no bit; grey gamma 1 becomes brighter, also from 16 bits; a damaged or foreign profile is said, and the colours stay."
    Image.new('RGB', (16, 16), COLOUR).save(tmp_path/'a.png', icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    assert (load_image(tmp_path/'a.png', 16)[:, 0, 0] == torch.tensor(COLOUR)).all()
    linear = icc(None, 1., b'GRAY')
    for im in (Image.new('L', (16, 16), 64), Image.fromarray(np.full((16, 16), 64*257, np.uint16))):
        im.save(tmp_path/'g.png', icc_profile=linear)
        x = load_image(tmp_path/'g.png', 16).numpy()
        assert np.abs(x.astype(int) - 255*(1.055*(64/255)**(1/2.4) - .055)).max() < 3, x[:, 0, 0]
    for n, p in (('d.png', b'nonsense'), ('e.png', linear)):
        Image.new('RGB', (16, 16), COLOUR).save(tmp_path/n, icc_profile=p)
        assert (load_image(tmp_path/n, 16)[:, 0, 0] == torch.tensor(COLOUR)).all() and n in capsys.readouterr().out

def test_rotation_of_deep_and_shallow_pictures(tmp_path):
    "EXIF orientation 3 turns upside down, also 16-bit grey."
    for im in (Image.fromarray(GREY), Image.fromarray(EIGHT)):
        e = im.getexif()
        e[274] = 3
        im.save(tmp_path/'x.png', exif=e)
        assert (load_image(tmp_path/'x.png', 16)[0].numpy() == EIGHT[::-1, ::-1]).all()
    assert (read(tmp_path, tiff(GREY, more={274: (3, [3])}.items()))[0] == EIGHT[::-1, ::-1]).all()

@pytest.mark.parametrize('kind', ['gif', 'webp', 'png', 'tiff'])
def test_the_first_frame_is_used_and_said(tmp_path, capsys, kind):
    frames = [Image.new('RGB', (16, 16), c) for c in ('red', 'blue', 'lime')]
    frames[0].save(tmp_path/f'x.{kind}', save_all=True, append_images=frames[1:], **({'lossless': True} if kind == 'webp' else {}))
    x = load_image(tmp_path/f'x.{kind}', 16)
    assert (x[0] > 250).all() and (x[1:] < 5).all() and '3 frames' in capsys.readouterr().out
    load_image(tmp_path/f'x.{kind}', 16)
    assert not capsys.readouterr().out                                      # once

# ---------------------------------------------------------------- what is no picture
FTYP = lambda brand, more=b'': b'\0\0\0\x18ftyp' + brand + bytes(4) + more + bytes(40)
@pytest.mark.parametrize('data, says', [
    (FTYP(b'heic'), 'HEIC'), (FTYP(b'mif1', b'heic'), 'HEIC'), (FTYP(b'qt  '), 'video'), (FTYP(b'isom'), 'video'), (FTYP(b'crx '), 'raw'),
    (b'%PDF-1.7\n', 'PDF'), (b'<?xml version="1.0"?>\n<svg xmlns="">', 'SVG'), (b'\xef\xbb\xbf <svg>', 'SVG'), (b'8BPS\0\1', 'Photoshop'),
    (b'\xff\x0a\0\0', 'JPEG XL'), (b'PK\3\4', 'archive'), (b'<!DOCTYPE html><html>', 'web page'), (b'version https://git-lfs.github.com/spec/v1\n', 'LFS'),
    (b'hello', 'not a complete image'), (b'\x89PNG\r\n\x1a\n', 'not a complete image'), (b'II*\0' + bytes(40), 'not a complete image'),
    (tiff(np.uint8(GREY >> 8), more={50706: (1, [1, 4, 0, 0])}.items()), 'raw photograph'),
    (tiff(np.uint8(GREY >> 8), more={254: (4, [1])}.items()), 'reduced copy')])
def test_the_true_reason_whatever_the_name_says(tmp_path, data, says): refused(lambda: read(tmp_path, data, 'IMG_1.jpg'), 'IMG_1.jpg', says)

@pytest.mark.parametrize('kind', ['png', 'jpeg', 'tiff', 'webp', 'gif', 'bmp', 'jpeg2000', 'avif', 'ppm'])
@pytest.mark.parametrize('share', [.3, .95])
def test_a_cut_file_is_no_picture(tmp_path, kind, share):
    b = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(b, kind)
    refused(lambda: read(tmp_path, b.getvalue()[:int(share*len(b.getvalue()))]), 'x.png', 'not a complete image')

def test_size_links_and_permissions(tmp_path, monkeypatch):
    Image.new('1', (9000, 9000)).save(tmp_path/'big.png')
    Image.new('L', (7, 90)).save(tmp_path/'small.png')
    (tmp_path/'gone.png').symlink_to(tmp_path/'nowhere.png')
    for n, says in (('big.png', 'million'), ('small.png', '8 x 8'), ('gone.png', 'is a link to'), ('none.png', 'does not exist')):
        refused(lambda n=n: load_image(tmp_path/n, 16), n, says)
    Image.new('L', (16, 16)).save(tmp_path/'mine.png')
    def closed(*a, **k): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(pictures.Image, 'open', closed)
    refused(lambda: load_image(tmp_path/'mine.png', 16), 'mine.png', 'Permission denied')

# ---------------------------------------------------------------- folders
def photos(folder, n=3, start=0, suffix='.png'):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + n): Image.new('RGB', (20, 20), (40*i, 90, zlib.crc32(folder.name.encode()) % 256)).save(folder/f'{i}{suffix}')
    return folder

SIDE = ('Thumbs.db desktop.ini .DS_Store ._0.png 0.caption 0.txt 0.npz 0.npy IMG_1.AAE 0.xmp metadata.jsonl info.json set.yaml a.csv a.toml '
        'latents.safetensors all.zip all.tar.gz 0.png~ 0.png.bak README LICENSE url.url .hidden').split()
@pytest.mark.parametrize('name', SIDE)
def test_side_files_are_left_out_and_said(tmp_path, capsys, name):
    photos(tmp_path)
    (tmp_path/name).write_bytes(b'something')
    assert [p.name for p in picture_files(tmp_path)] == ['0.png', '1.png', '2.png'] and load_images(tmp_path, 16).shape == (3, 3, 16, 16)
    out = capsys.readouterr().out
    assert (name in out) != name.startswith('.') and out.count('\n') <= 1                # hidden files are nobody's pictures

def test_many_side_files_make_one_line(tmp_path, capsys):
    "Also a kohya folder: captions and latents of every picture, and the folder of its pictures."
    photos(tmp_path)
    for i in range(3):
        for s in ('.caption', '.npz'): (tmp_path/f'{i}{s}').write_bytes(b'x')
    photos(tmp_path/'10_sks dog')
    load_images(tmp_path, 16)
    out = capsys.readouterr().out
    assert out.count('\n') == 1 and '3 files .caption' in out and '3 files .npz' in out and "'10_sks dog'" in out
    load_images(tmp_path, 16)
    assert not capsys.readouterr().out

UNREAD = 'IMG_1.HEIC a.heif a.hif a.dng a.CR2 a.nef a.arw a.jxl a.svg a.pdf a.psd a.mp4 a.MOV a.exr a.part a.crdownload'.split()
@pytest.mark.parametrize('name', UNREAD)
def test_pictures_of_a_kind_that_is_not_read_are_refused(tmp_path, name):
    photos(tmp_path)
    (tmp_path/name).write_bytes(b'x')
    refused(lambda: load_images(tmp_path, 16), name, 'onvert' if 'part' not in name else 'unfinished')

def test_what_is_neither_picture_nor_side_file_is_named(tmp_path):
    photos(tmp_path)
    (tmp_path/'data_batch_1').write_bytes(b'x')
    refused(lambda: load_images(tmp_path, 16), 'data_batch_1', 'no image')
    (tmp_path/'data_batch_1').write_bytes(FTYP(b'heic'))
    refused(lambda: load_images(tmp_path, 16), 'data_batch_1', 'HEIC')

def test_names_and_suffixes_do_not_matter(tmp_path):
    "Upper case, double suffixes, spaces, letters of other alphabets, no suffix: the content counts."
    names = ['A B (1).JPG', 'photo.final.PNG', 'Käfer.jpeg', '猫.webp', 'no-suffix', 'shot.jpg_large', 'x.Tif', 'y.jfif']
    for i, n in enumerate(names):
        b = io.BytesIO()
        Image.new('RGB', (20, 20), (0, 0, 20*i)).save(b, 'PNG')
        (tmp_path/n).write_bytes(b.getvalue())
    assert sorted(p.name for p in picture_files(tmp_path)) == sorted(names) and len(load_images(tmp_path, 16)) == len(names)

def test_a_folder_without_pictures_says_where_they_are(tmp_path):
    photos(tmp_path/'f/10_sks dog')
    refused(lambda: load_images(tmp_path/'f', 16), 'holds no images', '10_sks dog')
    (tmp_path/'f/broken.png').symlink_to(tmp_path/'nowhere.png')
    refused(lambda: load_images(tmp_path/'f', 16), 'broken.png', 'link')
    refused(lambda: load_images(tmp_path/'none', 16), 'does not exist')

# ---------------------------------------------------------------- subjects
@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv('OWF_DATA', str(tmp_path/'data'))
    return tmp_path/'data'

def own(data, name='my-mug', word=b'mug\n', n=3):
    photos(data/'subjects'/name, n)
    (data/'subjects'/name/'class.txt').write_bytes(word)
    return data/'subjects'/name

@pytest.mark.parametrize('raw', [b'dog', b'dog\r\n', b'\xef\xbb\xbfdog\n', b'  dog \n\n', 'dog'.encode(), b'"dog"', b"'dog'", '\u201cdog\u201d'.encode()])
def test_the_class_word_is_read(data, raw):
    own(data, word=raw)
    assert subject('my-mug', 16).class_word == 'dog' and subject('my-mug', 16).instance_prompt == 'a photo of a sks dog'

@pytest.mark.parametrize('raw, says', [
    ('dog'.encode('utf-16'), 'UTF-8'), ('dog'.encode('utf-16-le'), 'UTF-8'), ('dög'.encode('latin-1'), 'UTF-8'), (b'', 'empty'), (b' \n\n', 'empty'),
    (b'\xef\xbb\xbf', 'empty'), (b'dog\ncat\n', '2 lines'), (b'<new1> dog', 'alone'), (b'a {} dog', 'alone'), (b'123', 'letters'),
    (b'sks dog', "'sks'"), (b'SKS', "'SKS'"), ('dog\u200b'.encode(), 'alone'), ('\ufeff\ufeffdog'.encode(), 'alone'), (b'dog '*30, 'letters'),
    (b'dog\tcat', 'alone'),
    (b'a dog', 'Write: dog'), (b'The guide dog', 'Write: guide dog'), (b'my dog', 'Write: dog'), (b'dog.', 'alone: dog'), (b'dog,', 'example: dog'),
    (b'#dog', 'example: dog'), (b'guide%20dog', 'example: guide dog'), (b'coffee_mug', 'example: coffee mug'), (b'class: dog', "':'"), (b'dog|cat', "'|'"),
    (b'photo of a dog', 'Write: dog'), (b'dog!', "'!'"), (b'dog/cat', "'/'"), (b'dog-', 'alone: dog'), (b'"dog" "cat"', "'\"'")])
def test_a_class_word_that_cannot_stand_in_a_prompt(data, raw, says):
    own(data, word=raw)
    refused(lambda: subject('my-mug', 16), 'class.txt', says)

def test_class_txt_under_another_name(data):
    f = own(data)
    (f/'class.txt').rename(f/'class.txt.txt')
    refused(lambda: subject('my-mug', 16), 'class.txt is missing', 'class.txt.txt')
    (f/'class.txt.txt').rename(f/'Class.TXT')
    refused(lambda: read_class_word(f/'class.txt'), 'Class.TXT')
    (f/'Class.TXT').unlink()
    (f/'class.txt').mkdir()
    refused(lambda: subject('my-mug', 16), 'class.txt is a folder')

@pytest.mark.parametrize('word', ['guide dog', 'St. Bernard', 'T-shirt', "bird's nest", 'cafe\u0301', 'one',
     'salt & pepper', '\u0939\u093f\u0930\u0928', 'A4 page'])
def test_class_words_that_are_right(word): assert check_class_word(word, 'x').isprintable()

def test_masks_depths_and_thumbnails_are_no_photographs(data, capsys):
    f = own(data)
    for n in ('0_mask.png', '1-depth.jpg', '2.thumb.png', 'mask_1.png', '0_mask_2.png', '9_mask.png'):
        Image.new('RGB', (20, 20), (9, len(n), ord(n[0]))).save(f/n)
    assert [p.name for p in picture_files(f)] == ['0.png', '1.png', '2.png', '9_mask.png']               # of the last there is no photograph
    assert '0_mask.png' in (out := capsys.readouterr().out) and 'left out' in out and '9_mask' not in out

def test_two_photographs_and_twins_are_refused(data, tmp_path):
    f = own(data, n=2)
    refused(lambda: subject('my-mug', 16), 'holds 2 images', 'Add 1')
    photos(f, 2, start=2)
    (f/'copy of 1.png').write_bytes((f/'1.png').read_bytes())
    refused(lambda: subject('my-mug', 16), '1.png', 'copy of 1.png', 'same picture')
    (f/'copy of 1.png').unlink()
    Image.open(f/'1.png').save(f/'1 again.bmp')                            # the same pixels in another file
    refused(lambda: subject('my-mug', 16), '1 again.bmp', 'same picture')

def test_more_than_five_are_said_and_more_than_fifty_refused(data, capsys):
    f = own(data, n=6)
    assert len(subject('my-mug', 16).images) == 6 and '6 images' in capsys.readouterr().out
    for i in range(6, 51): Image.new('RGB', (20, 20), (i, 0, 0)).save(f/f'{i}.png')
    refused(lambda: subject('my-mug', 16), '51 images')

def test_names_that_cannot_be_a_concept(data, capsys):
    own(data), own(data, 'My Mug'), photos(data/'subjects/.ipynb_checkpoints'), photos(data/'subjects/__MACOSX')
    assert subjects() == ['my-mug'] and 'my-mug' in capsys.readouterr().out
    refused(lambda: subject('My Mug', 16), 'My Mug', "'my-mug'")
    refused(lambda: subject('my-mugg', 16), 'my-mug')

def test_records_refuse_images_that_are_no_bytes():
    x = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    for bad in (x.float(), x.long(), x[0], x[:, :1], x.permute(0, 2, 3, 1), x.numpy()):
        refused(lambda bad=bad: Subject('rex', 'dog', bad), 'rex', 'uint8')
        refused(lambda bad=bad: Benchmark('b', 'test', ['a', 'b'], bad, torch.zeros(3), torch.zeros(3)), 'uint8')
    for y, g in (([0, 1], [0, 1, 2]), ([0, 1, 2], [0, 1, 2]), ([0, 1, -1], [0, 1, 2]), ([0, 1, 1], [0, 1])):
        refused(lambda y=y, g=g: Benchmark('b', 'test', ['a', 'b'], x, torch.tensor(y), torch.tensor(g)), 'Benchmark b')

# ---------------------------------------------------------------- the mini world's own check
def test_a_class_word_that_the_mini_world_never_read(data):
    import openworld_forget.mini.data as mini
    own(data, word=b'mugg'), own(data, 'x', b'xylophone'), own(data, 'vstar', b'ohwx'), own(data, 'two', b'coffee mug'), own(data, 'one', b'x')
    for n, says in (('my-mug', 'mug'), ('x', 'xylophone'), ('vstar', 'ohwx'), ('one', "'x'")): refused(lambda n=n: mini.check_subject(n), 'never read', says)
    (data/'subjects/my-mug/class.txt').write_text('Beer Mug')
    mini.check_subject('my-mug')
    assert mini.subject('my-mug').class_word == 'Beer Mug'
    assert mini.unknown_words('a drawing of a red house, in flat style on a xylophone') == [',', 'xylophone']

def test_the_words_of_the_mini_world_are_whole_tokens_and_others_are_not(data):
    import openworld_forget.mini.data as mini
    from openworld_forget.mini.text import words
    from transformers import CLIPTokenizer
    from conftest import ROOT
    tok = CLIPTokenizer.from_pretrained(ROOT/'weights/mini/tokenizer')
    whole = lambda w: tok.tokenize(w) == [w + '</w>']
    assert all(whole(w) for w in words()) and not any(whole(w) for w in ('mugg', 'xylophone'))
    assert mini.unknown_words(' '.join(words())) == ['ktn', 'ohwx', 'pxq', 'sks', 'zwx']

def test_a_folder_named_like_a_built_in_subject(data):
    import openworld_forget.mini.data as mini
    own(data, 'cat-noto', b'cat face'), own(data)
    for f in (lambda: mini.subject('cat-noto'), lambda: mini.check_subject('cat-noto')): refused(f, 'cat-noto', 'built-in', 'Rename')
    mini.check_subject('my-mug')
    mini.check_subject('cat-twemoji')                                      # others are none of its business

# ---------------------------------------------------------------- benchmarks
def classes(data, *paths, n=2):
    for p in paths: photos(data/'benchmarks'/p, n)

def test_hidden_folders_and_files_are_no_classes_and_no_pictures(data, capsys):
    classes(data, 'a/cat', 'a/dog', 'a/.ipynb_checkpoints', 'a/__MACOSX', 'a/@eaDir', '.ipynb_checkpoints/cat')
    for n in ('cat/._0.png', 'cat/Thumbs.db', 'labels.csv', 'dog/.hidden.png'): (data/'benchmarks/a'/n).write_bytes(b'x')
    b = benchmark('a', 'test', 16)
    assert benchmarks() == ['a'] and b.classes == ['cat', 'dog'] and b.labels.tolist() == [0, 0, 1, 1]
    out = capsys.readouterr().out
    assert 'Thumbs.db' in out and 'labels.csv' in out and out.count('\n') == 1

LAYOUTS = {
    'pets, as downloaded':     (['images', 'annotations/trimaps'], ['images', 'parts of a data set']),
    'one folder of pictures':  (['images'], ['1 class folder', 'two or more']),
    'one class':               (['cat'], ['1 class folder']),
    'flat':                    ([''], ['outside of class folders']),
    'train and test':          (['train/cat', 'train/dog', 'test/cat'], ['parts of a data set']),
    'a folder too many':       (['vehicles/car', 'animals/cat'], ['holds no pictures but folders', 'cat']),
    'numbers':                 (['0', '1', '2'], ['numbers', 'a photo of a 0']),
    'numbers in front':        (['001.ak47', '002.american-flag'], ['numbers']),
    'wordnet':                 (['n02085620-Chihuahua', 'n02085782-spaniel'], ['numbers']),
    'the same words':          (['red_car', 'red car', 'blue_car'], ['same words', "'red_car'", "'red car'"]),
    'the same in lower case':  (['Cat', 'cat'], ['same words']),
    'joined otherwise':        (['black-cat', 'black_cat', 'dog'], ['same words']),
    'accents as two signs':    (['caf\u00e9', 'cafe\u0301'], ['same words']),
    **{x: (x.split('+'), ['parts of a data set']) for x in (
        'jpg+segmim img+mask rgb+depth original+augmented frames+labels images_background+images_evaluation imgs_train+imgs_test train_images+test_images '
        'train2017+val2017 fold1+fold2 part1+part2 set_a+set_b trainA+trainB+testA Train+Test batch_1+batch_2 train+val+dogs').split()},
    **{x: (x.split('+'), ['numbers']) for x in (
        '0-cat+1-dog 0_cat+1_dog 01\u00a0cat+02\u00a0dog class_0+class_1 class0+class1 cluster-12+cluster-13 c0+c1+c2 1\u00a0cat+2\u00a0dog').replace(' ', '\n')
        .replace('\u00a0', ' ').split('\n')},
    **{x: ([x, 'cat', 'dog'], [x, 'no class']) for x in ('BACKGROUND_Google', 'unlabeled', 'New folder (2)', 'dog - Copy', 'cat (1)', 'dog copy')},
}
@pytest.mark.parametrize('name', LAYOUTS)
def test_layouts_that_are_not_one_folder_per_class(data, name):
    folders, says = LAYOUTS[name]
    classes(data, *[f'b/{f}' for f in folders])
    refused(lambda: benchmark('b', 'test', 16), *says)

def test_cifar_as_downloaded_and_empty_sets(data):
    for n in ('cifar10/cifar-10-batches-py/data_batch_1', 'cifar10/cifar-10-batches-py/batches.meta', 'flat/data_batch_1', 'flat/batches.meta'):
        (data/'benchmarks'/n).parent.mkdir(parents=True, exist_ok=True)
        (data/'benchmarks'/n).write_bytes(b'x')
    refused(lambda: benchmark('cifar10', 'test', 16), 'cifar-10-batches-py', '<class>')
    refused(lambda: benchmark('flat', 'test', 16), 'data_batch_1', '<class>')
    classes(data, 'a/cat', 'a/dog')
    (data/'benchmarks/a/eel').mkdir()
    refused(lambda: benchmark('a', 'test', 16), 'eel', 'no images')
    (data/'benchmarks/a/eel/notes.txt').write_text('x')
    refused(lambda: benchmark('a', 'test', 16), 'eel', 'notes.txt')
    (data/'benchmarks/a/eel/1.heic').write_text('x')
    refused(lambda: benchmark('a', 'test', 16), '1.heic', 'JPEG or PNG')

def test_words_with_digits_are_classes(data):
    classes(data, 'b/boeing 747', 'b/3d_printer', 'b/été', 'b/train')
    assert list(benchmark_files('b')) == sorted(['boeing 747', '3d_printer', 'été', 'train'])
    assert 'a photo of a 3d printer.' in benchmark('b', 'test', 16).prompts
    for bad in (0, -1, 2.5, True, '2'):
        refused(lambda bad=bad: benchmark('b', 'test', 16, per_class=bad), f'{bad!r} images per class')
        refused(lambda bad=bad: load_image('x.png', bad), 'pixels a side')

@pytest.mark.parametrize('names', ['mask+helmet', 'part+boeing 747-400+train', 'frame+table+video', '1 euro+2 euro+50 cent',
    'f16+f18', 'q1+q2+q3', '7-eleven+aldi+lidl',
    'normal+abnormal', 'train+bus', 'real+fake', 'black cat+blackbird', '3d printer+2d plotter', 'test tube+flask', 'color+shape', 'carbon copy+original'])
def test_what_is_a_class_is_read(data, names):
    classes(data, *[f'b/{n}' for n in names.split('+')])
    assert len(benchmark_files('b')) == len(names.split('+'))

def test_one_picture_in_two_classes_is_refused_and_twice_in_one_is_said(data, capsys):
    classes(data, 'b/cat', 'b/dog')
    d = data/'benchmarks/b'
    (d/'cat/9.png').write_bytes((d/'cat/0.png').read_bytes())
    assert len(benchmark_files('b')['cat']) == 3 and 'cat/9.png' in capsys.readouterr().out
    (d/'dog/7.png').write_bytes((d/'cat/1.png').read_bytes())
    refused(lambda: benchmark_files('b'), 'cat/1.png', 'dog/7.png', 'two labels')

# ---------------------------------------------------------------- before a model is loaded
FOLDERS = WorldSpec(name='mine', source='my/sd', data='openworld_forget.worlds.folders', clip='', features='')
def test_a_world_without_data_is_refused_without_its_weights(data):
    refused(lambda: check_data(FOLDERS), 'No benchmarks at', 'OWF_DATA')
    (data/'benchmarks').mkdir(parents=True)
    refused(lambda: check_data(FOLDERS), 'no folders')
    (data/'benchmarks/cifar-10-python.tar.gz').write_bytes(b'x')
    refused(lambda: check_data(FOLDERS), 'cifar-10-python.tar.gz', 'unpack')
    classes(data, 'a/cat', 'a/dog', 'z/images')
    refused(lambda: check_data(FOLDERS), 'z has 1 class folder')
    check_data(FOLDERS, benchmarks=1)                                      # only those that the study measures
    refused(lambda: check_data(FOLDERS, ['rex'], 1), 'No subjects at')
    own(data)
    check_data(FOLDERS, ['my-mug'], 1)
    refused(lambda: check_data(FOLDERS, ['my-mugg'], 1), 'my-mug')
    (data/'subjects/my-mug/1.png').write_bytes(b'hello')
    refused(lambda: check_data(FOLDERS, ['my-mug'], 1), '1.png')
    refused(lambda: check_data(FOLDERS.but(data='my.data')), 'my.data', 'cannot be imported')
    refused(lambda: check_data(FOLDERS.but(data='openworld_forget.core')), 'lacks splits')

def test_the_mini_world_without_its_drawings(data, tmp_path, monkeypatch):
    check_data(spec_of('mini'), ['cat-noto'], 2)
    refused(lambda: check_data(spec_of('mini'), splits=['knwon']), 'known')
    monkeypatch.setenv('OWF_NODE_MODULES', str(tmp_path))
    refused(lambda: check_data(spec_of('mini')), 'npm ci')

# ---------------------------------------------------------------- the drawings
SOME = [('rocket', 'noto'), ('tulip', 'openmoji')]
def test_the_drawings_lie_in_one_place_whatever_the_outputs(tmp_path, monkeypatch):
    from openworld_forget.mini import images
    from conftest import ROOT
    a = images._drawings_file(SOME)
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path/'elsewhere'))
    monkeypatch.delenv('OWF_CACHE', raising=False)
    assert images._drawings_file(SOME).parent == shared_cache() == ROOT/'.cache'
    monkeypatch.setenv('OWF_CACHE', str(tmp_path/'c'))
    assert images._drawings_file(SOME) == tmp_path/'c'/a.name and images._drawings_file(SOME[:1]).name != a.name

def test_two_at_once_draw_once(tmp_path, monkeypatch):
    from openworld_forget.mini import images
    drawn, real, out = [], images.draw, []
    monkeypatch.setattr(images, 'draw', lambda *i: drawn.append(i) or real(*i))
    threads = [threading.Thread(target=lambda: out.append(images.draw_once(SOME, tmp_path/'d.npy'))) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(drawn) == 2 and len(out) == 3 and all((x == out[0]).all() for x in out) and not list(tmp_path.glob('*.tmp'))

def test_a_place_that_cannot_be_written_or_is_full(tmp_path, monkeypatch):
    "One error, before anything is drawn; a file that a full disk cut is drawn again."
    from openworld_forget.mini import images
    drawn, real = [], images.draw
    monkeypatch.setattr(images, 'draw', lambda *i: drawn.append(i) or real(*i))
    (tmp_path/'file').write_text('x')
    refused(lambda: images.draw_once(SOME, tmp_path/'file/d.npy'), 'OWF_CACHE', 'cannot be written')
    def closed(path): raise OSError(30, 'Read-only file system')
    with monkeypatch.context() as m:
        m.setattr(images, 'atomic', closed)
        refused(lambda: images.draw_once(SOME, tmp_path/'d.npy'), 'OWF_CACHE', 'Read-only file system')
    with monkeypatch.context() as m:
        m.setattr(images.shutil, 'disk_usage', lambda _: type('U', (), dict(free=1000))())
        refused(lambda: images.draw_once(SOME, tmp_path/'d.npy'), 'OWF_CACHE', '0 MB left')
    assert not drawn
    a = images.draw_once(SOME, tmp_path/'d.npy').copy()
    (tmp_path/'d.npy').write_bytes((tmp_path/'d.npy').read_bytes()[:70000])
    assert (images.draw_once(SOME, tmp_path/'d.npy') == a).all() and len(drawn) == 4
