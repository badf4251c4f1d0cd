// The pages work without this. It adds the waveform's slider, keys, speed, one channel alone and skipping silence,
// and tells the server the reader's time zone once.

const clock = (seconds) => {
  const s = Math.floor(seconds), h = Math.floor(s / 3600), two = (n) => String(n).padStart(2, "0");
  return (h ? h + ":" + two(Math.floor(s / 60) % 60) : String(Math.floor(s / 60))) + ":" + two(s % 60);
};

if (!/(^|; )tz=/.test(document.cookie)) {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const secure = location.protocol === "https:" ? "; Secure" : "";
  if (zone) document.cookie = `tz=${zone}; Path=/; Max-Age=31536000; SameSite=Lax${secure}`;
}

class Player {
  constructor(box) {
    this.box = box;
    this.sound = box.querySelector("audio");
    this.seek = box.querySelector(".seek");
    this.played = box.querySelector(".played");
    this.time = box.querySelector(".time");
    this.speed = box.querySelector(".speed");
    this.skip = box.querySelector(".skip-silence");
    this.channel = box.querySelector(".channel");
    this.length = Number(box.dataset.duration);
    this.silences = JSON.parse(box.dataset.silences);
    for (const hidden of box.querySelectorAll("[hidden]")) hidden.hidden = false;
    for (const mark of box.querySelectorAll(".mark")) mark.style.left = `${(100 * mark.dataset.at) / this.length}%`;
    this.seek.addEventListener("input", () => this.to(Number(this.seek.value)));
    // The slider's own steps are too small; the page's keys do it.
    this.seek.addEventListener("keydown", (event) => { if (key(event, this)) event.stopPropagation(); });
    this.speed.addEventListener("change", () => { this.sound.playbackRate = Number(this.speed.value); });
    this.channel?.addEventListener("change", () => this.only(this.channel.value));
    this.sound.addEventListener("timeupdate", () => this.show());
    this.sound.addEventListener("seeked", () => this.show());
    this.sound.addEventListener("play", () => { Player.last = this; this.context?.resume(); this.follow(); });
    this.show();
  }

  to(seconds) {
    this.sound.currentTime = Math.min(Math.max(seconds, 0), this.length);
    this.show();
  }

  show() {
    const at = this.sound.currentTime;
    this.seek.value = at;
    const [m, s] = [Math.floor(at / 60), Math.floor(at % 60)];
    this.seek.setAttribute("aria-valuetext", this.box.dataset.minutes.replace("{m}", m).replace("{s}", s));
    this.played.style.width = `${(100 * at) / this.length}%`;
    this.time.textContent = clock(at);
  }

  // While it plays: the slider moves smoothly, and silence is skipped where that is wanted.
  follow() {
    if (this.sound.paused) return;
    const at = this.sound.currentTime;
    const silence = this.skip.checked && this.silences.find(([start, end]) => start <= at && at < end);
    if (silence && !this.sound.seeking) this.sound.currentTime = silence[1];
    this.show();
    requestAnimationFrame(() => this.follow());
  }

  toggle() { if (this.sound.paused) this.sound.play(); else this.sound.pause(); }

  faster(step) {
    const at = this.speed.selectedIndex + step;
    if (at >= 0 && at < this.speed.options.length) {
      this.speed.selectedIndex = at;
      this.sound.playbackRate = Number(this.speed.value);
    }
  }

  nextChannel() {
    if (!this.channel) return;
    this.channel.selectedIndex = (this.channel.selectedIndex + 1) % this.channel.options.length;
    this.only(this.channel.value);
  }

  // One channel on both ears, or both as they are. The audio graph is made at its first use only.
  only(which) {
    if (!this.context) {
      this.context = new AudioContext();
      this.source = this.context.createMediaElementSource(this.sound);
      this.split = this.context.createChannelSplitter(2);
      this.one = this.context.createGain();
      this.one.connect(this.context.destination);
      this.source.connect(this.split);
    }
    this.source.disconnect();
    this.split.disconnect();
    if (which === "both") {
      this.source.connect(this.context.destination);
    } else {
      this.source.connect(this.split);
      this.split.connect(this.one, Number(which));
    }
    this.context.resume();
  }
}

// True where the key meant something.
function key(event, player) {
  if (event.ctrlKey || event.altKey || event.metaKey) return false;
  const sound = player.sound;
  const does = {
    " ": () => player.toggle(), k: () => player.toggle(),
    arrowleft: () => player.to(sound.currentTime - 5), arrowright: () => player.to(sound.currentTime + 5),
    j: () => player.to(sound.currentTime - 10), l: () => player.to(sound.currentTime + 10),
    "<": () => player.faster(-1), ">": () => player.faster(1),
    m: () => { sound.muted = !sound.muted; }, c: () => player.nextChannel(),
  }[event.key.toLowerCase()] ?? (/^[0-9]$/.test(event.key) ? () => player.to((player.length * event.key) / 10) : null);
  if (!does) return false;
  does();
  event.preventDefault();
  return true;
}

const players = [...document.querySelectorAll(".player")].map((box) => new Player(box));
Player.last = players[0];
if (players.length) {
  document.addEventListener("keydown", (event) => {
    const on = event.target;
    if (on.closest("input:not([type=range]), select, textarea, button, a, summary, audio")) return;
    key(event, Player.last);
  });
  for (const jump of document.querySelectorAll(".jump")) {
    jump.addEventListener("click", () => { Player.last.to(Number(jump.dataset.at)); Player.last.sound.play(); });
  }
}
