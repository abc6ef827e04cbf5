/** `xsan completion SHELL`: a script for the shell, made from the tree of the commands themselves. */
import { Argument, type Command } from 'commander'
import { command } from './program.ts'

const SHELLS = ['bash', 'zsh', 'fish'] as const
type Shell = (typeof SHELLS)[number]

export function completion(): Command {
  const made = command({
    usage: 'completion',
    description: 'print a script that completes commands and options: bash, zsh or fish',
    examples: ['source <(xsan completion bash)', 'xsan completion zsh > ~/.zfunc/_xsan', 'xsan completion fish > ~/.config/fish/completions/xsan.fish'],
    async run({ args }) {
      let root: Command = made
      while (root.parent !== null) root = root.parent
      const script = completionScript(args[0] as Shell, root)
      return { data: { shell: args[0], script }, table: () => script.trimEnd() }
    },
  })
  return made.addArgument(new Argument('<shell>', 'for which').choices([...SHELLS]))
}

interface Word {
  readonly word: string
  readonly description: string
}
interface Place {
  /** Words after the program's name: "", "volume", "volume create". */
  readonly path: string
  readonly commands: readonly Word[]
  readonly options: readonly Word[]
  /** Values of an option, where they are a fixed few. */
  readonly choices: ReadonlyArray<{ readonly flags: readonly string[]; readonly values: readonly string[] }>
}

/** Every place in the tree where something can be completed. */
function placesOf(from: Command, path: readonly string[] = []): Place[] {
  const commands = from.commands.map((child) => ({ word: child.name(), description: child.description() }))
  const options = from.options.map(({ long, short, description }) => ({ word: long ?? short ?? '', description }))
  const choices = from.options.flatMap(({ long, short, argChoices }) =>
    argChoices === undefined ? [] : [{ flags: [short, long].filter((flag) => flag !== undefined), values: argChoices }],
  )
  const arguments_ = from.registeredArguments.flatMap(({ argChoices }) => argChoices ?? []).map((word) => ({ word, description: '' }))
  const here: Place = { path: path.join(' '), commands: [...commands, ...arguments_], options: [...options, { word: '--help', description: 'help' }], choices }
  return [here, ...from.commands.flatMap((child) => placesOf(child, [...path, child.name()]))]
}

export function completionScript(shell: Shell, root: Command): string {
  const places = placesOf(root)
  switch (shell) {
    case 'bash':
      return bash(root.name(), places)
    case 'zsh':
      return zsh(root.name(), places)
    case 'fish':
      return fish(root.name(), places)
  }
}

const functionName = (program: string) => `_${program.replace(/-/g, '_')}`
const quoted = (text: string) => `'${text.replace(/'/g, `'\\''`)}'`
const words = (of: readonly Word[]) => of.map(({ word }) => word).join(' ')

/** The path is the longest one known that the words before the cursor spell; options and their values in between are skipped. */
function bash(program: string, places: readonly Place[]): string {
  const name = functionName(program)
  const values = places.flatMap(({ path, choices }) =>
    choices.flatMap(({ flags, values }) => flags.map((flag) => `    ${quoted(`${path}|${flag}`)}) words=${quoted(values.join(' '))} ;;`)),
  )
  return `# bash completion of ${program}; made by: ${program} completion bash
${name}() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}" path='' word words=''
  local i
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="\${COMP_WORDS[i]}"
    case "\${path:+$path }$word" in
      ${places
        .filter(({ path }) => path !== '')
        .map(({ path }) => quoted(path))
        .join(' | ')}) path="\${path:+$path }$word" ;;
    esac
  done
  case "$path|$previous" in
${values.join('\n')}
  esac
  if [[ -z $words ]]; then
    case "$path" in
${places.map(({ path, commands, options }) => `    ${quoted(path)}) if [[ $current == -* ]]; then words=${quoted(words(options))}; else words=${quoted(words(commands))}; fi ;;`).join('\n')}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [[ -z $words ]] && compopt -o default 2>/dev/null
  return 0
}
complete -F ${name} ${program}
`
}

function zsh(program: string, places: readonly Place[]): string {
  const described = (of: readonly Word[]) => of.map(({ word, description }) => quoted(`${word.replace(/:/g, '\\:')}:${description}`)).join(' ')
  return `#compdef ${program}
# zsh completion of ${program}; made by: ${program} completion zsh
${functionName(program)}() {
  local at='' word
  local -a here flags
  for word in "\${(@)words[2,CURRENT-1]}"; do
    case "\${at:+$at }$word" in
      ${places
        .filter(({ path }) => path !== '')
        .map(({ path }) => quoted(path))
        .join('|')}) at="\${at:+$at }$word" ;;
    esac
  done
  case "$at|$words[CURRENT-1]" in
${places.flatMap(({ path, choices }) => choices.map(({ flags, values }) => `    ${flags.map((flag) => quoted(`${path}|${flag}`)).join('|')}) compadd -- ${values.join(' ')}; return ;;`)).join('\n')}
  esac
  case "$at" in
${places.map(({ path, commands, options }) => `    ${quoted(path)}) here=(${described(commands)}); flags=(${described(options)}) ;;`).join('\n')}
  esac
  if [[ $words[CURRENT] == -* ]]; then _describe option flags; elif (( \${#here} )); then _describe command here; else _files; fi
}
compdef ${functionName(program)} ${program}
`
}

function fish(program: string, places: readonly Place[]): string {
  const at = `__${functionName(program).slice(1)}_at`
  const lines = places.flatMap(({ path, commands, options, choices }) => {
    const where = `-n ${quoted(`${at} ${quoted(path)}`)}`
    return [
      ...commands.map(({ word, description }) => `complete -c ${program} ${where} -f -a ${quoted(word)} -d ${quoted(description)}`),
      ...options.map(({ word, description }) => {
        const values = choices.find(({ flags }) => flags.includes(word))?.values
        return `complete -c ${program} ${where} -l ${word.replace(/^--/, '')} -d ${quoted(description)}${values ? ` -x -a ${quoted(values.join(' '))}` : ''}`
      }),
    ]
  })
  return `# fish completion of ${program}; made by: ${program} completion fish
function ${at}
    set -l path ''
    for word in (commandline -opc)[2..-1]
        set -l next (string trim -- "$path $word")
        contains -- $next ${places
          .filter(({ path }) => path !== '')
          .map(({ path }) => quoted(path))
          .join(' ')}; and set path $next
    end
    test "$path" = "$argv[1]"
end
${lines.join('\n')}
`
}
