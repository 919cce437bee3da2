"""What is tried in the world of ``world.py``: rows 23 to 34 and 79 of the bad-input table, and more of their kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

PUBLIC = ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946")
"""Where ``public.test`` is, the one place that everybody may call."""

OURS = "http://svd.test"
"""Our own public URL: a public address, too, which must never be called."""

KEY = "b/0123456789abcdef0123456789abcdef/cat.png"
"""A file that we have."""

PORTS = (22, 25, 53, 80, 443, 2375, 6379, 8000, 8080, 8443, 9000, 10001)
"""Where something listens, on every address there is."""


def wide(text: str) -> str:
    """The same in the wide letters of East Asian texts, which some parsers read as ours."""
    return "".join(chr(ord(letter) + 0xFEE0) for letter in text)


PRIVATE = (
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[0000:0000:0000:0000:0000:0000:0000:0001]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:0:127.0.0.1]",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]",
    "[2001:0:7f00:1::]",
    "[100::1]",
    "[2001:db8::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fd12:3456::1]",
    "[fe80::1]",
    "[fec0::1]",
    "[ff02::1]",
)

SPELLINGS = (
    "127.1",
    "127.0.1",
    "127.0.0.1.",
    "2130706433",
    "2130706433.",
    "017700000001",
    "0177.0.0.1",
    "0177.0x0.0.1",
    "127.0.0.01",
    "0x7f000001",
    "0x7F000001",
    "0x7f.1",
    "0x7f.0x0.0x0.0x1",
    "0x",
    "0",
    "0.0",
    "00000000177.0.0.1",
    "127.0.0.1%00",
    "127%2e0%2e0%2e1",
    "%31%32%37.0.0.1",
    "①②⑦.⓪.⓪.①",
    wide("127") + ".0.0.1",
    wide("127.0.0.1"),
    "127。0。0。1",
    f"127{wide('.')}0{wide('.')}0{wide('.')}1",
    "127｡0｡0｡1",
    "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
    wide("localhost"),
    "local\u00adhost",
    "local\u200bhost",
    "localhost",
    "LocalHost",
    "localhost.",
    "any.localhost",
    "[fe80::1%lo]",
    "[fe80::1%25lo]",
    "[::1%25lo]",
    "[::ffff:127.0.0.1%25lo]",
    "[v1.127.0.0.1]",
    "[127.0.0.1]",
    "[::1",
    "::1",
    "169.254.43518",
    "0xa9fea9fe",
    "2852039166",
    "0251.0376.0251.0376",
    "metadata.google.internal",
)

NAMES = (
    "loopback.test",
    "private.test",
    "link.test",
    "shared.test",
    "v6-loopback.test",
    "v6-mapped.test",
    "v6-nat64.test",
    "v6-6to4.test",
    "v6-metadata.test",
    "mixed.test",
    "mixed-last.test",
    "mixed-families.test",
    "alias.test",
    "long-alias.test",
    "gone.test",
)

SCHEMES = (
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "gopher://127.0.0.1:6379/_PING",
    "ftp://127.0.0.1/cat.png",
    "dict://127.0.0.1:6379/info",
    "unix:/var/run/docker.sock",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "jar:http://127.0.0.1!/x",
    "blob:http://127.0.0.1/1",
    "javascript:alert(1)",
    "s3://bucket/cat.png",
    "ws://127.0.0.1/",
    "view-source:http://127.0.0.1/",
    "//127.0.0.1/",
    "http:127.0.0.1/",
    "http:/127.0.0.1/",
    "http:///127.0.0.1/",
    "http://",
    "http://:80/",
    "http://?/127.0.0.1",
    "http://#127.0.0.1",
)

PARSERS = (
    "http://user:swordfish@127.0.0.1/",
    "http://user:swordfish@public.test/",
    "http://public.test@127.0.0.1/",
    "http://public.test:80@127.0.0.1/",
    "http://public.test%40127.0.0.1/",
    "http://127.0.0.1\\@public.test/",
    "http://public.test\\@127.0.0.1/",
    "http://a\\@127.0.0.1/",
    "http://a#@127.0.0.1/",
    "http://a?@127.0.0.1/",
    "http://127.0.0.1#@public.test/",
    "http://127.0.0.1\t.public.test/",
    "http://127.0.0.1 .public.test/",
    "http://127.0.0.1\r\n/",
    "http://public.test/\r\nHost: 127.0.0.1\r\n\r\n",
    "http://public.test /",
    " http://127.0.0.1/",
    "http://127.0.0.1/ ",
    "\thttp://127.0.0.1/",
    "ht\ntp://127.0.0.1/",
    "http://127.0.0.1\x00.public.test/",
    "http://127.0.0.1,public.test/",
    "http://127.0.0.1;public.test/",
    "http://127.0.0.1&@public.test/",
    "http://[::1]public.test/",
    "http://[::1]:80@public.test/",
    "http://public.test/" + "a" * 8192,
)

NUMBERS = (
    "0",
    "22",
    "25",
    "53",
    "2375",
    "6379",
    "8000",
    "9000",
    "10001",
    "65535",
    "65536",
    "99999",
    "-1",
    "+80",
    wide("80"),
)

OWN = (
    f"{OURS}/",
    f"{OURS}/models/fal-ai/svd",
    f"{OURS}/files/b/none/cat.png",
    f"{OURS}//files/{KEY}",
    f"{OURS}/files/%2e%2e/{KEY}",
    f"{OURS}/files/../../etc/passwd",
    "HTTP://SVD.TEST:80/health/ready",
    "https://svd.test/health/ready",
    "http://svd.test./health/ready",
    f"http://user:swordfish@svd.test/files/{KEY}",
)
"""What is ours and no file."""

READ = (
    f"{OURS}/files/{KEY}",
    f"HTTP://Svd.Test:80/files/{KEY}",
    f"http://svd.test./%66iles/{KEY}",
    f"{OURS}/files/{KEY.replace('/', '%2f')}?token=1",
    f"https://v3.fal.media/files/{KEY}",
)
"""What is ours, and is read from the storage."""

TARGETS = (
    "http://127.0.0.1/",
    "http://localhost:8080/",
    "http://169.254.169.254/latest/meta-data/iam/",
    "http://10.0.0.1/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://127。0。0。1/",
    "http://private.test/",
    "http://mixed.test/",
    "//127.0.0.1/",
    "//user:swordfish@127.0.0.1/",
    "http://user:swordfish@public.test/",
    "http://public.test:22/",
    "http://public.test:9000/",
    "http://public.test\\@127.0.0.1/",
    "http://public.test /",
    "\\\\127.0.0.1\\",
    "file:///etc/passwd",
    "ftp://127.0.0.1/",
    "gopher://127.0.0.1:6379/",
    "javascript:alert(1)",
    "data:image/png;base64,AAAA",
    "http://",
    "http://[",
    f"{OURS}/files/{KEY}",
    "https://svd.test/",
    f"https://v3.fal.media/files/{KEY}",
)
"""Where a redirect may not lead."""


@dataclass(frozen=True)
class Case:
    """A URL, whether it may be had, and of what kind it is."""

    name: str
    url: str
    had: bool = False
    redirects: bool = False
    ours: bool = False

    def by(self, road: str) -> str:
        """The URL as it is tried by a road."""
        return self.url.replace("ROAD", road)


def redirect(target: str, status: int = 302) -> str:
    """A public URL that leads elsewhere."""
    return f"http://public.test/to/{status}/{quote(target, safe='')}"


def _cases() -> Iterator[Case]:
    for host in (*PRIVATE, *SPELLINGS):
        yield Case(f"host {host!a}", f"http://{host}/")
    for host in ("127.0.0.1", "localhost", "[::1]", "169.254.169.254"):
        for port in (443, 8080, 8443):
            yield Case(f"{host} on {port}", f"http://{host}:{port}/")
        yield Case(f"{host} by TLS", f"https://{host}/")
    for name in NAMES:
        yield Case(f"name {name}", f"http://{name}/")
    for url in (*SCHEMES, *PARSERS):
        yield Case(f"form {url[:60]!a}", url)
    for number in NUMBERS:
        yield Case(f"port {number!a}", f"http://public.test:{number}/")
    for url in OWN:
        yield Case(f"ours {url}", url, ours=True)
    for target in TARGETS:
        yield Case(f"redirect to {target!a}", redirect(target), redirects=True)
    for code in (301, 303, 307, 308):
        yield Case(f"redirect by {code}", redirect("http://169.254.169.254/", code), redirects=True)
    yield Case("redirect in a redirect", redirect(redirect("http://127.0.0.1/")), redirects=True)
    yield Case("redirect by a raw line feed", "http://public.test/raw/%0d%0a%20127.0.0.1/", redirects=True)
    yield Case("redirect by two headers", "http://public.test/two/", redirects=True)
    yield Case("six redirects", "http://public.test/hops/6", redirects=True)
    yield Case("redirects without end", "http://public.test/loop", redirects=True)


def _good() -> Iterator[Case]:
    yield Case("public", "http://public.test/", had=True)
    yield Case("public by another port", "http://public.test:8080/", had=True)
    yield Case("public by its address", f"http://{PUBLIC[0]}/", had=True)
    yield Case("public by its IPv6 address", f"http://[{PUBLIC[1]}]:8443/", had=True)
    yield Case("public in capitals and dots", "HTTP://PUBLIC.test.:80/a/../b", had=True)
    yield Case("public of another script", "http://bücher.test/ä", had=True)
    yield Case("public through an alias", "http://public-alias.test/", had=True)
    yield Case("public at first", "http://ROAD.rebinding.test/", had=True)
    yield Case("public within IPv6", f"http://[::ffff:{PUBLIC[0]}]/", had=True)
    yield Case("redirect to public", redirect("http://public.test:8080/"), had=True, redirects=True)
    yield Case("redirect without a host", redirect("/here"), had=True, redirects=True)
    yield Case("redirect without a scheme", redirect("//public.test/here"), had=True, redirects=True)
    yield Case("five redirects", "http://public.test/hops/5", had=True, redirects=True)


CASES = (*_cases(), *_good())
WEBHOOKS = tuple(case for case in CASES if not case.ours)
"""Our own address is like any other to who is told of an end: it is called as everybody may call it."""

ALLOWED = "minio.internal:9000, 10.1.0.0/16, .corp.test, 10.3.0.1:9000, [fd00:1::/32]:9000"
"""What an operator allows beside the public web."""

WITH_ALLOWED = (
    Case("by name and port", "http://minio.internal:9000/", had=True),
    Case("by name in capitals", "http://MinIO.Internal.:9000/", had=True),
    Case("by network", "http://10.1.2.3/", had=True),
    Case("by network under any name", "http://in-network.test/", had=True),
    Case("by suffix", "http://a.b.corp.test/", had=True),
    Case("by address and port", "http://10.3.0.1:9000/", had=True),
    Case("by IPv6 network and port", "http://[fd00:1::7]:9000/", had=True),
    Case("by redirect", redirect("http://minio.internal:9000/"), had=True, redirects=True),
    Case("public as ever", "http://public.test/", had=True),
    Case("the name on another port", "http://minio.internal/"),
    Case("the address of the name", "http://10.2.0.5:9000/"),
    Case("another name for it", "http://not-minio.test:9000/"),
    Case("a name below it", "http://x.minio.internal:9000/"),
    Case("a public host on its port", "http://public.test:9000/"),
    Case("the network on another port", "http://10.1.2.3:9000/"),
    Case("beside the network", "http://10.0.2.3/"),
    Case("the suffix itself", "http://corp.test/"),
    Case("another name with its end", "http://evilcorp.test/"),
    Case("metadata below the suffix", "http://metadata.corp.test/"),
    Case("a cloud's metadata below the suffix", "http://cloud.corp.test/"),
    Case("IPv6 metadata below the suffix", "http://v6-cloud.corp.test/"),
    Case("the address on another port", "http://10.3.0.1/"),
    Case("the IPv6 network on another port", "http://[fd00:1::7]/"),
    Case("an address within IPv6", "http://[::ffff:10.1.2.3]/"),
    Case("loopback as ever", "http://127.0.0.1/"),
    Case("redirect to beside the network", redirect("http://10.0.2.3/"), redirects=True),
)
