/**
 * The manual pages of packaging/man, from the commands and the schema of the configuration themselves: node tools/print-man.ts (writes them), or
 * --check (exit code 1 when one is out of date). A test holds them to it.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Command } from 'commander'
import { VERSION } from '../src/cli/program.ts'
import { xsanProgram } from '../src/cli/xsan-commands.ts'
import { xsanDebugProgram } from '../src/cli/xsan-debug-commands.ts'
import { xsandProgram } from '../src/cli/xsand-options.ts'
import { configKeys } from '../src/node/config.ts'

const DIRECTORY = join(import.meta.dirname, '../packaging/man')

/** Text of a line: no dash or backslash that troff would take for its own, no dot or quote that begins a request. */
const text = (plain: string) =>
  plain
    .replace(/\\/g, '\\e')
    .replace(/-/g, '\\-')
    .replace(/^([.'])/gm, '\\&$1')
const bold = (plain: string) => `\\fB${text(plain)}\\fR`
const heading = (title: string, section: number, about: string) =>
  `.TH ${title.toUpperCase()} ${section} "" "XSAN ${VERSION}" "XSAN"\n.SH NAME\n${text(title)} \\- ${text(about)}\n`

const EXIT_STATUS = `.SH EXIT STATUS
0 ok, 1 failed, 2 cluster or system fault, 3 already exists, 4 full, 5 not found, 6 not ready or no quorum, 7 in use, 8 timed out but still running,
64 wrong usage. An error is one line on stderr: its code, its name, what happened, and what to do.
`

const SHARED = ['--output', '--server', '--help', '--version']

function commandsOf(from: Command): Command[] {
  return from.commands.length === 0 ? [from] : from.commands.flatMap(commandsOf)
}

function pathOf(command: Command): string {
  return command.parent === null ? command.name() : `${pathOf(command.parent)} ${command.name()}`
}

function commandText(command: Command): string {
  const arguments_ = command.registeredArguments.map((argument) => {
    const name = `${argument.name()}${argument.variadic ? '...' : ''}`
    return ` ${argument.required ? `<${name}>` : `[${name}]`}`
  })
  const own = command.options.filter(({ long, description }) => !SHARED.includes(long ?? '') && !description.startsWith('give up waiting'))
  const options = own.map(({ flags, description }) => `.RS\n.TP\n${bold(flags)}\n${text(description)}\n.RE\n`)
  return `.TP\n${bold(pathOf(command))}${text(arguments_.join(''))}\n${text(command.description())}\n${options.join('')}`
}

function programPage(root: Command, more: string): string {
  return `${heading(root.name(), 8, root.description())}.SH SYNOPSIS
${bold(root.name())} [\\fIcommand\\fR] [\\fIoptions\\fR]
.SH COMMANDS
${commandsOf(root).map(commandText).join('')}.SH OPTIONS OF ALL COMMANDS
.TP
${bold('-o, --output table|json|yaml')}
Data goes to stdout, everything else to stderr. JSON and YAML carry format_version; fields may be added at any time.
.TP
${bold('--server HOST:PORT')}
The node to ask; any node answers for all. Default: XSAN_SERVER, the node of /etc/xsan/xsan.json, 127.0.0.1:8080.
.TP
${bold('--timeout TIME')}
Give up waiting for an answer after this long (500ms, 60s, 5m); where a command waits for something else, that. Default: 15s, more for what takes longer.
${EXIT_STATUS}.SH ENVIRONMENT
.TP
${bold('XSAN_SERVER')}
as \\-\\-server
.TP
${bold('NO_COLOR')}
no colour, also on a terminal
.TP
${bold('XSAN_PAGER, PAGER')}
shows what is longer than the terminal
${more}`
}

const SEE_ALSO = `.SH SEE ALSO
.BR xsan (8),
.BR xsan\\-debug (8),
.BR xsand (8),
.BR xsan.json (5)
`

function daemonPage(): string {
  const root = xsandProgram()
  const options = root.options.map(({ flags, description }) => `.TP\n${bold(flags)}\n${text(description)}\n`).join('')
  return `${heading('xsand', 8, root.description())}.SH SYNOPSIS
${bold('xsand')} [\\fIoptions\\fR]
.SH DESCRIPTION
Serves the disks of one node and exports the volumes of its cluster. Runs in the foreground and logs one JSON line per event to stderr.
With a service manager (Type=notify) it says READY=1 once it answers calls, STATUS= what it waits for, WATCHDOG=1 while its threads turn, and STOPPING=1.
.SH OPTIONS
${options}.SH SIGNALS
.TP
${bold('SIGTERM, SIGINT')}
refuse new updates, drain, hand over, exit with 0; after 25 s exit all the same
.TP
${bold('SIGQUIT')}
write the flight recorder (the last events of each thread) to a file flight\\-*.bin in cluster.data_dir, and go on
.SH FILES
.TP
${bold('/etc/xsan/xsan.json, /etc/xsan/xsan.json.d/*.json')}
configuration, and overrides in name order
.TP
${bold('/var/lib/xsan')}
metadata of this node (cluster.data_dir)
.TP
${bold('/run/xsan/nbd.sock')}
NBD export of all volumes
${EXIT_STATUS}${SEE_ALSO}`
}

function configPage(): string {
  const keys = configKeys().map(({ key, description, byDefault, hot }) => {
    const value = byDefault === undefined ? 'Required.' : byDefault === null ? 'Optional.' : `Default: ${JSON.stringify(byDefault)}.`
    return `.TP\n${bold(key)}\n${text(`${description} ${value}${hot ? ' Changes at run time: xsan config set.' : ''}`)}\n`
  })
  return `${heading('xsan.json', 5, 'configuration of xsand')}.SH DESCRIPTION
A JSON object. The files of xsan.json.d are merged over it in name order; lists are replaced. An unknown key or a wrong value is an error that names the key,
its place, the file and the nearest known key. Times are milliseconds; sizes are bytes, or text such as "4G" (binary units). Relative paths are taken from the
directory of xsan.json. Check a file with ${bold('xsan config validate FILE')}.
.SH KEYS
${keys.join('')}${SEE_ALSO}`
}

export function manPages(): ReadonlyMap<string, string> {
  return new Map([
    ['xsan.8', programPage(xsanProgram(), SEE_ALSO)],
    ['xsan-debug.8', programPage(xsanDebugProgram(), SEE_ALSO)],
    ['xsand.8', daemonPage()],
    ['xsan.json.5', configPage()],
  ])
}

/** Names of the pages that are not as they should be. */
export function stalePages(): string[] {
  return [...manPages()].filter(([name, page]) => readOr(join(DIRECTORY, name)) !== page).map(([name]) => name)
}

function readOr(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

if (import.meta.main) {
  if (process.argv.includes('--check')) {
    const stale = stalePages()
    if (stale.length > 0) console.error(`out of date: ${stale.join(', ')}; run: node tools/print-man.ts`)
    process.exitCode = stale.length > 0 ? 1 : 0
  } else {
    mkdirSync(DIRECTORY, { recursive: true })
    for (const [name, page] of manPages()) writeFileSync(join(DIRECTORY, name), page)
  }
}
